//! Disk files on a host: cheap copies, what changed since, and putting it back.
//!
//! A microVM's disk starts as a [`reflink`] of its image's disk. At suspend,
//! [`difference`] writes what has changed into one compact file; on a host that
//! has only the image, [`reflink`] and [`apply`] make the same disk again.
//!
//! Everything here blocks on the file system: call it where that is allowed.
//! Nothing may write to the files meanwhile.

mod copy;
mod difference;
mod extents;
mod format;

pub use copy::{CopyMethod, is_reflink_filesystem, refill, reflink};
pub use difference::{DifferenceMethod, DifferenceStats, apply, difference};
pub use format::RUNS_MAX;
