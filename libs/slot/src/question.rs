//! Which DNS messages of a guest are passed on to the host's resolvers: plain questions, one in each message. They come
//! from the host's address, and a resolver may let the host do more than ask: transfer zones, update them.

/// A DNS header, in bytes.
pub(crate) const HEADER: usize = 12;
/// Longest label of a name, and longest name, in bytes.
const LABEL_MAX: usize = 63;
const NAME_MAX: usize = 255;
/// Types of questions that ask for a whole zone or for its changes.
const TRANSFERS: [u16; 2] = [252, 251];

/// True for a standard query with one question, for anything but a zone's transfer.
pub(crate) fn is_plain(message: &[u8]) -> bool {
    kind(message).is_some_and(|kind| !TRANSFERS.contains(&kind))
}

/// True when a message claims to answer a question.
pub(crate) fn is_answer(question: &[u8], message: &[u8]) -> bool {
    message.len() >= HEADER && message[..2] == question[..2] && message[2] & 0x80 != 0
}

/// The type that a standard query asks for, if it has one question and no answers or authorities. What comes
/// after the question is left to the resolver.
fn kind(message: &[u8]) -> Option<u16> {
    let header = message.first_chunk::<HEADER>()?;
    let counts = [4, 6, 8].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
    // Not an answer, and no other operation.
    if header[2] & 0xf8 != 0 || counts != [1, 0, 0] {
        return None;
    }
    let mut name = &message[HEADER..];
    loop {
        let (length, rest) = name.split_first()?;
        if *length == 0 {
            name = rest;
            break;
        }
        let length = usize::from(*length);
        // A reference to another name is longer than any label; the first name of a message can refer to none.
        if length > LABEL_MAX || message.len() - rest.len() + length > HEADER + NAME_MAX {
            return None;
        }
        name = rest.get(length..)?;
    }
    let [high, low, _, _] = name.first_chunk::<4>()?;
    Some(u16::from_be_bytes([*high, *low]))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A question of `kind` about `name`, with the flags' first byte.
    pub(crate) fn message(flags: u8, name: &[&str], kind: u16) -> Vec<u8> {
        let mut message = vec![7, 9, flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message
    }

    #[test]
    fn plain_questions_pass() {
        let label = "x".repeat(63);
        let long = [&label[..], &label, &label, &label[..61]];
        for (name, kind) in [(&["example", "com"][..], 1), (&[], 2), (&["a"], 255), (&long, 28)] {
            assert!(is_plain(&message(1, name, kind)), "{name:?} {kind}");
        }
        // With an additional record after it.
        let mut extended = message(1, &["a"], 1);
        extended[11] = 1;
        extended.extend_from_slice(&[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        assert!(is_plain(&extended));
    }

    #[test]
    fn nothing_else_passes() {
        let plain = message(1, &["example", "com"], 1);
        let changed = |at: usize, value: u8| {
            let mut message = plain.clone();
            message[at] = value;
            message
        };
        let label = "x".repeat(63);
        let too_long = message(1, &[&label[..], &label, &label, &label], 1);
        for (what, message) in [
            ("an answer", changed(2, 0x81)),
            ("a notification", changed(2, 4 << 3)),
            ("an update", changed(2, 5 << 3)),
            ("no question", changed(5, 0)),
            ("two questions", changed(5, 2)),
            ("256 and one questions", changed(4, 1)),
            ("with an answer", changed(7, 1)),
            ("with an authority, as an incremental transfer has", changed(9, 1)),
            ("a transfer", message(1, &["example", "com"], 252)),
            ("an incremental transfer", message(1, &["example", "com"], 251)),
            ("a reference for a name", changed(12, 0xc0)),
            ("a label beyond the end", changed(12, 60)),
            ("a name that is too long", too_long),
            ("without its class", plain[..plain.len() - 2].to_vec()),
            ("a header", plain[..HEADER].to_vec()),
            ("nothing", Vec::new()),
        ] {
            assert!(!is_plain(&message), "{what}");
        }
    }

    #[test]
    fn an_answer_has_the_questions_number() {
        let question = message(1, &["a"], 1);
        let answer = message(0x81, &["a"], 1);
        assert!(is_answer(&question, &answer));
        assert!(!is_answer(&question, &question));
        assert!(!is_answer(&[1, 1], &answer));
        assert!(!is_answer(&question, &answer[..HEADER - 1]));
    }
}
