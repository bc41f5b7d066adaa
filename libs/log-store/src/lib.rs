//! Bounded logs in files, with numbered lines that can be followed.
//!
//! A [`Log`] takes lines and numbers them; one JSON object per line goes to its
//! file. A [`Reader`] gives lines from any number on and goes on where it stopped;
//! [`Log::end`] tells when there is more. A log survives its process: opened again
//! it goes on numbering where it stopped. A line torn by a crash is left out.
//!
//! Not here: rates, what the lines mean, and where a log goes in the end.

mod line;
mod log;
mod reader;

pub use line::{Batch, LINE_BYTES_MAX, LINES_PER_BATCH};
pub use log::{Bounds, Full, Log};
pub use reader::Reader;
