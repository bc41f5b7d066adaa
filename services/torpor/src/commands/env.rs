//! `torpor env`: what other clients of this fleet need, as shell exports.

use std::io::IsTerminal as _;
use std::path::Path;

use client::ARTIFACT_BUCKET;

use super::Session;
use crate::error::CliError;
use crate::fleet::roots;
use crate::output;

/// What clients read the CAs they trust from, instead of the system's: curl, Python's requests, OpenSSL (and with it httpx
/// and Rust's native roots), gRPC.
const INSTEAD_OF_SYSTEM_CAS: [&str; 4] =
    ["CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"];

/// Prints the exports (or one JSON object).
pub fn run(data_dir: &Path, session: &Session) -> Result<(), CliError> {
    let variables = variables(data_dir, session);
    if session.json() {
        let members = variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        return output::value(&serde_json::Value::Object(members));
    }
    for (name, value) in variables {
        output::line(format_args!("export {name}={}", quote(&value)))?;
    }
    // A session token that is left of other credentials would go with these.
    output::line("unset AWS_SESSION_TOKEN")?;
    if std::io::stdout().is_terminal() {
        output::remark("use it so: eval \"$(torpor env)\"");
        output::remark(format_args!("artifacts go to s3://{ARTIFACT_BUCKET}"));
    }
    Ok(())
}

fn variables(data_dir: &Path, session: &Session) -> Vec<(&'static str, String)> {
    let context = &session.context;
    let path = |path: &Path| path.display().to_string();
    let mut variables = vec![
        ("TORPOR_DATA_DIR", path(data_dir)),
        ("TORPOR_SCHEDULER", context.scheduler.clone()),
        ("TORPOR_IMAGE_BUILDER", context.image_builder.clone()),
        ("TORPOR_EDGE", context.edge.clone()),
        ("TORPOR_API", context.api.clone()),
        ("TORPOR_ENDPOINT_DOMAIN", context.endpoint_domain.clone()),
        ("TORPOR_CA", path(&context.ca)),
        ("TORPOR_CERT", path(&context.cert)),
        ("TORPOR_KEY", path(&context.key)),
        ("TORPOR_ARTIFACT_BUCKET", ARTIFACT_BUCKET.to_owned()),
        ("AWS_ENDPOINT_URL_S3", context.s3.endpoint.clone()),
        ("AWS_ACCESS_KEY_ID", context.s3.access_key_id.clone()),
        ("AWS_SECRET_ACCESS_KEY", context.s3.secret_access_key.clone()),
        ("AWS_REGION", context.s3.region.clone()),
        ("AWS_DEFAULT_REGION", context.s3.region.clone()),
        // Newer clients add checksums that not every S3 endpoint takes.
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required".to_owned()),
        ("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required".to_owned()),
    ];
    let roots = Some(roots::file(&context.ca)).filter(|roots| roots.is_file());
    if !context.api.is_empty() {
        variables.extend([
            ("AWS_ENDPOINT_URL_LAMBDA_MICROVMS", context.api.clone()),
            ("AWS_ENDPOINT_URL_LAMBDA_CORE", context.api.clone()),
            ("AWS_ENDPOINT_URL_STS", context.api.clone()),
            ("AWS_CA_BUNDLE", path(roots.as_deref().unwrap_or(&context.ca))),
        ]);
    }
    // Node adds its file to the CAs that it trusts anyway. The others would trust the fleet alone without the system's CAs
    // in the file, and every other HTTPS call of theirs would fail.
    variables.push(("NODE_EXTRA_CA_CERTS", path(&context.ca)));
    if let Some(roots) = roots {
        variables.extend(INSTEAD_OF_SYSTEM_CAS.map(|name| (name, path(&roots))));
    }
    variables
}

fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_a_shell() {
        let cases =
            [("plain-1.2:3/x", "plain-1.2:3/x"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("", "''")];
        for (value, quoted) in cases {
            assert_eq!(quote(value), quoted);
        }
    }
}
