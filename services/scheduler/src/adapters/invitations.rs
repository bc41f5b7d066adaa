//! Invitations in etcd, `invitations/<digest of the code>`. The code itself is in the link and nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::MicrovmId;
use model::limits::INVITATION_CODE_LENGTH;
use serde::{Deserialize, Serialize};

use super::access_keys::NoRandomness;

pub const PREFIX: &str = "invitations/";
/// Random bytes of a code: 43 characters of base64.
const CODE_BYTES: usize = 32;

/// What a link opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    pub microvm_id: MicrovmId,
    /// Guest port that the session reaches.
    pub port: u16,
    /// Where the link leads.
    pub path: String,
    pub session_seconds: u64,
    /// How often the microVM's tokens had been revoked: a later revocation ends the invitation too.
    pub revocations: u64,
    /// In seconds since 1970.
    pub expires_at: u64,
}

/// A fresh code.
pub fn generate() -> Result<String, NoRandomness> {
    let mut code = [0; CODE_BYTES];
    aws_lc_rs::rand::fill(&mut code).map_err(|_| NoRandomness)?;
    Ok(URL_SAFE_NO_PAD.encode(code))
}

/// Whether text has the form of a code.
pub fn is_code(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.len() == INVITATION_CODE_LENGTH && text.bytes().all(allowed)
}

/// Where the invitation of a code is. A code is random enough for a digest without salt.
pub fn key(code: &str) -> String {
    format!("{PREFIX}{}", blake3::hash(code.as_bytes()).to_hex())
}

pub fn encode(invitation: &Invitation) -> Vec<u8> {
    serde_json::to_vec(invitation).expect("an invitation has a JSON form")
}

/// An invitation from bytes; `None` when they are not one.
pub fn decode(bytes: &[u8]) -> Option<Invitation> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_form_and_their_keys_do_not_show_them() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert!(is_code(&one) && is_code(&two) && one != two);
        assert!(!key(&one).contains(&one) && key(&one) != key(&two));
        for text in ["", "x", &one[1..], &format!("{one}A"), &format!("{}/", &one[1..])] {
            assert!(!is_code(text), "{text}");
        }
    }
}
