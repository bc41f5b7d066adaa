//! ARNs of the fleet, and which ARNs are somebody else's. Pure.

/// The fleet's region and account, as its ARNs have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// Region, "us-east-1".
    pub region: String,
    /// Account, 12 digits.
    pub account: String,
}

/// Kinds of resources that requests name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `microvm-image`.
    Image,
    /// `network-connector`.
    Connector,
    /// `microvm`.
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

impl Fleet {
    /// The ARN of a resource of the fleet; an ARN stays as it is.
    #[must_use]
    pub fn arn(&self, kind: Kind, identifier: &str) -> String {
        if is_arn(identifier) {
            return identifier.to_owned();
        }
        let Self { region, account } = self;
        format!("arn:aws:lambda:{region}:{account}:{}:{identifier}", kind.name())
    }

    /// Whether an identifier is the ARN of something that is not this account's,
    /// or one spelt with a slash, which belongs to nobody. `managed` says that the
    /// operation is about the service's own resources too.
    #[must_use]
    pub fn is_foreign(&self, identifier: &str, managed: bool) -> bool {
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
}

impl Fleet {
    /// Whether a text is the ARN of a resource of this kind and this account, well
    /// spelt or not.
    #[must_use]
    pub fn is_own(&self, kind: Kind, text: &str) -> bool {
        let mut parts = text.splitn(7, ':').skip(4);
        is_arn(text) && parts.next() == Some(&self.account) && parts.next() == Some(kind.name())
    }
}

/// Whether a text claims to be an ARN.
#[must_use]
pub fn is_arn(text: &str) -> bool {
    text.starts_with("arn:")
}

/// What is said of an image identifier that is no ARN: names are for the gRPC
/// API. `launch` is true for the operations on microVMs, which say it otherwise.
#[must_use]
pub fn bare(identifier: &str, launch: bool) -> Option<String> {
    (!is_arn(identifier)).then(|| {
        if launch {
            "Malformed ARN - doesn't start with 'arn:'".to_owned()
        } else {
            format!("Invalid ARN format: {identifier}")
        }
    })
}

/// The start of a text, for answers and records that repeat it.
#[must_use]
pub fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> Fleet {
        Fleet { region: "us-east-1".into(), account: "000000000000".into() }
    }

    #[test]
    fn names_become_arns_and_arns_stay() {
        let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:app";
        assert_eq!(fleet().arn(Kind::Image, "app"), arn);
        assert_eq!(fleet().arn(Kind::Image, arn), arn);
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
            assert_eq!(fleet().is_own(Kind::Connector, text), own, "{text}");
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
            assert_eq!(fleet().is_foreign(identifier, managed), foreign, "{identifier}");
        }
    }
}
