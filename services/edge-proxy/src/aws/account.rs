//! The account that a fleet serves: its ARNs, and which ARNs are another account's. Pure.

/// Region and account, as ARNs have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub region: String,
    pub account: String,
}

/// Kinds of resources that requests name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Image,
    Connector,
    Microvm,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Image => "microvm-image",
            Self::Connector => "network-connector",
            Self::Microvm => "microvm",
        }
    }
}

impl Account {
    /// The ARN of a resource of the fleet; an ARN stays as it is.
    pub(crate) fn arn(&self, kind: Kind, identifier: &str) -> String {
        if is_arn(identifier) {
            return identifier.to_owned();
        }
        let Self { region, account } = self;
        format!("arn:aws:lambda:{region}:{account}:{}:{identifier}", kind.name())
    }

    /// Whether an identifier is the ARN of something that is not this account's, or one spelt with a slash,
    /// which belongs to nobody. `managed` says that the operation is about the service's own resources too.
    pub(crate) fn is_foreign(&self, identifier: &str, managed: bool) -> bool {
        let mut parts = identifier.splitn(6, ':');
        let head = [parts.next(), parts.next(), parts.next(), parts.next()];
        let [Some("arn"), Some(partition), Some("lambda"), Some(_)] = head else {
            return false;
        };
        let (Some(account), Some(resource)) = (parts.next(), parts.next()) else {
            return false;
        };
        let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let known = account == self.account || (managed && account == "aws");
        partition.starts_with("aws")
            && ((!known && (digits || account == "aws")) || resource.starts_with("microvm-image/"))
    }

    /// Whether a text is the ARN of a resource of this kind and this account, well spelt or not.
    pub(crate) fn is_own(&self, kind: Kind, text: &str) -> bool {
        let mut parts = text.splitn(7, ':').skip(4);
        is_arn(text) && parts.next() == Some(&self.account) && parts.next() == Some(kind.name())
    }
}

/// Whether a text claims to be an ARN.
fn is_arn(text: &str) -> bool {
    text.starts_with("arn:")
}

/// The start of a text, for answers and records that repeat it.
pub(crate) fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account { region: "us-east-1".into(), account: "000000000000".into() }
    }

    #[test]
    fn names_become_arns_and_arns_stay() {
        let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
        assert_eq!(account().arn(Kind::Image, "app"), arn);
        assert_eq!(account().arn(Kind::Image, arn), arn);
    }

    #[test]
    fn own_resources_are_known_by_kind() {
        for (text, own) in [
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:2", true),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:office", true),
            ("arn:aws:lambda:us-east-1:000000000000:microvm-image:office", false),
            ("arn:aws:lambda:us-east-1:111111111111:network-connector:nc-1", false),
            ("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS", false),
            ("nc-1", false),
        ] {
            assert_eq!(account().is_own(Kind::Connector, text), own, "{text}");
        }
    }

    #[test]
    fn clipping_splits_no_character() {
        for (bytes_max, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aä"), (9, "aä")] {
            assert_eq!(clip("aä", bytes_max), expected);
        }
    }

    #[test]
    fn foreign_arns_are_told_from_own_and_from_nonsense() {
        for (identifier, managed, foreign) in [
            ("arn:aws:lambda:us-east-1:000000000000:microvm-image:app", false, false),
            ("arn:aws:lambda:us-east-1:111111111111:microvm-image:app", false, true),
            ("arn:aws-cn:lambda:cn-north-1:111111111111:microvm-image:app", true, true),
            ("arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1", false, true),
            ("arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1", true, false),
            ("arn:aws:lambda:us-east-1:000000000000:microvm-image/app", false, true),
            ("arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:2", false, false),
            ("arn:aws:s3:::bucket", false, false),
            ("arn:aws:lambda:us-east-1:123:microvm-image:app", false, false),
            ("arn:", false, false),
            ("app", false, false),
        ] {
            assert_eq!(account().is_foreign(identifier, managed), foreign, "{identifier}");
        }
    }
}
