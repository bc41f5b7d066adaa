//! The one operation of STS that set-up tools call before anything else, `GetCallerIdentity`. It has no model of its own: STS
//! speaks the query protocol, a form in and XML out, and the operation takes nothing.

use crate::error::{ErrorClass, Rejection};
use crate::reply::Reply;
use crate::route::decode;

/// Name of the service in the scope of signatures.
pub const SERVICE: &str = "sts";
/// The operation.
pub const OPERATION: &str = "GetCallerIdentity";
/// Its action, as records name it. No policy is asked: who has a key may ask whose it is.
pub const ACTION: &str = "sts:GetCallerIdentity";

const VERSION: &str = "2011-06-15";
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
const CONTENT_TYPE: &str = "text/xml";
/// Most fields of a form.
const FIELDS_MAX: usize = 200;

/// Whether a request is for STS. No operation of the other services has this path.
pub fn is_asked(method: &str, path: &str) -> bool {
    method == "POST" && path == "/"
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The ARN of the user.
    pub arn: &'a str,
    /// An id that belongs to nobody else.
    pub user_id: &'a str,
    /// 12 digits.
    pub account: &'a str,
}

/// Why a request is refused, in the words of STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// "InvalidAction".
    pub code: &'static str,
    /// HTTP status.
    pub status: u16,
    message: String,
}

impl From<Rejection> for Refusal {
    /// STS has names of its own for some of what every service refuses.
    fn from(rejection: Rejection) -> Self {
        let code = match rejection.class {
            ErrorClass::UnrecognizedClient => "InvalidClientTokenId",
            ErrorClass::InvalidSignature => "SignatureDoesNotMatch",
            ErrorClass::InternalServer => "InternalFailure",
            class => class.name().trim_end_matches("Exception"),
        };
        let message = rejection.message.unwrap_or_default();
        Self { code, status: rejection.class.status(), message }
    }
}

/// Checks that a form asks for the operation.
///
/// # Errors
/// When it asks for another, or for none.
pub fn read(form: &[u8]) -> Result<(), Refusal> {
    let invalid = |code, message: String| Refusal { code, status: 400, message };
    let (mut action, mut version) = (None, None);
    let text = std::str::from_utf8(form).unwrap_or_default();
    for field in text.split('&').take(FIELDS_MAX) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        match name {
            "Action" => action = decode(value, true),
            "Version" => version = decode(value, true),
            _ => {}
        }
    }
    let action = action.ok_or_else(|| invalid("MissingAction", "Missing Action".to_owned()))?;
    let version = version.unwrap_or_default();
    if (action.as_str(), version.as_str()) == (OPERATION, VERSION) {
        return Ok(());
    }
    Err(invalid("InvalidAction", format!("Could not find operation {action} for version {version}")))
}

/// The answer of success.
pub fn answer(identity: Identity<'_>, request_id: &str) -> Reply {
    let Identity { arn, user_id, account } = identity;
    let body = format!(
        "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"><GetCallerIdentityResult><Arn>{}</Arn><UserId>{}</UserId>\
         <Account>{}</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata>\
         </GetCallerIdentityResponse>",
        escaped(arn),
        escaped(user_id),
        escaped(account),
        escaped(request_id),
    );
    Reply { status: 200, content_type: Some(CONTENT_TYPE), body: body.into_bytes() }
}

impl Refusal {
    /// The answer to what is refused.
    pub fn reply(&self, request_id: &str) -> Reply {
        let side = if self.status < 500 { "Sender" } else { "Receiver" };
        let body = format!(
            "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>{side}</Type><Code>{}</Code><Message>{}</Message></Error>\
             <RequestId>{}</RequestId></ErrorResponse>",
            self.code,
            escaped(&self.message),
            escaped(request_id),
        );
        Reply { status: self.status, content_type: Some(CONTENT_TYPE), body: body.into_bytes() }
    }
}

/// A text inside an element. Characters that XML cannot carry are replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\n' | '\t' => out.push(character),
            '\u{fffe}' | '\u{ffff}' => out.push(char::REPLACEMENT_CHARACTER),
            character if character.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_operation_is_known() {
        for (form, code) in [
            ("Action=GetCallerIdentity&Version=2011-06-15", None),
            ("Version=2011-06-15&Action=GetCallerIdentity&X=y", None),
            ("Action=AssumeRole&Version=2011-06-15", Some("InvalidAction")),
            ("Action=GetCallerIdentity", Some("InvalidAction")),
            ("Action=%zz", Some("MissingAction")),
            ("Version=2011-06-15", Some("MissingAction")),
            ("", Some("MissingAction")),
        ] {
            let refused = read(form.as_bytes()).err().map(|refusal| refusal.code);
            assert_eq!(refused, code, "{form}");
        }
        assert!(read(b"Action=\xff").is_err());
    }

    #[test]
    fn answers_are_well_formed_whatever_was_asked() {
        let refusal = read(b"Action=%3Ca%3E%26%00&Version=1").unwrap_err();
        let body = String::from_utf8(refusal.reply("id").body).unwrap();
        assert!(body.contains("operation &lt;a&gt;&amp;\u{fffd} for version 1"), "{body}");
        let identity =
            Identity { arn: "arn:aws:iam::000000000000:user/a", user_id: "AKIA", account: "000000000000" };
        let body = String::from_utf8(answer(identity, "id").body).unwrap();
        assert!(body.contains("<Arn>arn:aws:iam::000000000000:user/a</Arn><UserId>AKIA</UserId>"), "{body}");
    }

    #[test]
    fn refusals_have_the_names_of_sts() {
        for (class, code, status) in [
            (ErrorClass::UnrecognizedClient, "InvalidClientTokenId", 403),
            (ErrorClass::InvalidSignature, "SignatureDoesNotMatch", 403),
            (ErrorClass::MissingAuthenticationToken, "MissingAuthenticationToken", 403),
            (ErrorClass::ExpiredToken, "ExpiredToken", 403),
            (ErrorClass::InternalServer, "InternalFailure", 500),
        ] {
            let refusal = Refusal::from(Rejection::silent(class));
            assert_eq!((refusal.code, refusal.status), (code, status));
        }
    }
}
