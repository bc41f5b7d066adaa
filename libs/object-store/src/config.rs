//! Where the store is and how long to wait for it.

use std::fmt;
use std::time::Duration;

/// How to reach one S3 endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// Base address such as `http://127.0.0.1:7390`; `None` is AWS itself.
    pub endpoint: Option<String>,
    /// Region that requests are signed for.
    pub region: String,
    /// Access key; requests are not signed when this or the secret is missing.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    /// Bucket in the path instead of in the host name; nearly every server but AWS wants it.
    pub path_style: bool,
    /// Attempts per request, the first one included.
    pub attempts_max: u32,
    /// Wait for a connection.
    pub connect_timeout: Duration,
    /// Wait for the answer to one attempt, its request body included.
    pub attempt_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key: None,
            path_style: false,
            attempts_max: 4,
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(60),
        }
    }
}

impl From<&settings::S3Settings> for Config {
    fn from(value: &settings::S3Settings) -> Self {
        Self {
            endpoint: value.endpoint.clone(),
            region: value.region.clone(),
            access_key_id: value.access_key_id.clone(),
            secret_access_key: value.secret_access_key.as_ref().map(|secret| secret.expose().to_owned()),
            path_style: value.path_style,
            ..Self::default()
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &self.secret_access_key.as_ref().map(|_| "(hidden)"))
            .field("path_style", &self.path_style)
            .field("attempts_max", &self.attempts_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("attempt_timeout", &self.attempt_timeout)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_stays_out_of_debug_output() {
        let config = Config { secret_access_key: Some("hush".to_owned()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hush"));
    }
}
