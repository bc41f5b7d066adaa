//! Client tokens: the same token with the same parameters is the same microVM,
//! with other parameters a conflict. A token lives as long as its record.

/// BLAKE3 digest.
pub type Digest = [u8; 32];

/// A client token and what it was used for. Digests only: tokens are the
/// caller's, and parameters hold a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenUse {
    pub token: Digest,
    /// Digest of the request without its token.
    pub parameters: Digest,
}

impl TokenUse {
    /// Digests of a token and of the encoded request without it.
    pub fn of(token: &str, parameters: &[u8]) -> Self {
        Self {
            token: *blake3::hash(token.as_bytes()).as_bytes(),
            parameters: *blake3::hash(parameters).as_bytes(),
        }
    }
}

/// What a request with a token means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenDecision {
    New,
    Replay,
    /// The token belongs to another request.
    Conflict,
}

/// Compares a request's token with the recorded use of the same token.
pub fn decide(recorded: Option<&TokenUse>, asked: &TokenUse) -> TokenDecision {
    match recorded {
        None => TokenDecision::New,
        Some(recorded) if recorded == asked => TokenDecision::Replay,
        Some(_) => TokenDecision::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_means_one_request() {
        let first = TokenUse::of("token", b"parameters");
        let other = TokenUse::of("token", b"others");
        for (recorded, asked, decision) in [
            (None, first, TokenDecision::New),
            (Some(&first), first, TokenDecision::Replay),
            (Some(&first), other, TokenDecision::Conflict),
        ] {
            assert_eq!(decide(recorded, &asked), decision);
        }
    }
}
