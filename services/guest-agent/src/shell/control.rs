//! What a client says in text frames.

use serde::Deserialize;

/// `{"type":"resize","cols":120,"rows":40}`; other members are let be.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Control {
    Resize { cols: u16, rows: u16 },
}

/// Columns and rows, if the text asks for a size. Any other text is typed into the shell.
pub fn resize(text: &str) -> Option<(u16, u16)> {
    let Control::Resize { cols, rows } = serde_json::from_str(text).ok()?;
    Some((cols, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_resize_is_one() {
        for (text, expected) in [
            (r#"{"type":"resize","cols":120,"rows":40}"#, Some((120, 40))),
            (r#" { "rows" : 1, "cols": 65535, "type": "resize", "pixels": {} } "#, Some((65535, 1))),
            (r#"{"type":"resize","cols":120}"#, None),
            (r#"{"type":"resize","cols":-1,"rows":40}"#, None),
            (r#"{"type":"resize","cols":65536,"rows":40}"#, None),
            (r#"{"type":"ping"}"#, None),
            ("ls\n", None),
            ("", None),
        ] {
            assert_eq!(resize(text), expected, "{text}");
        }
    }
}
