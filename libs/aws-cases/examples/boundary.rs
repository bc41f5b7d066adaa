//! Prints every boundary case as a line of JSON: operation, what, method, path,
//! plain_path, query, body, valid, class, status, violation.

use std::io::{self, BufWriter, Write};

fn main() -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for case in aws_cases::cases(&aws_model::Limits::default()) {
        serde_json::to_writer(&mut out, &case)?;
        writeln!(out)?;
    }
    out.flush()
}
