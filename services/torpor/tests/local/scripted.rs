//! A fleet of one scheduler that is scripted, and the command line for it.

use std::process::Output;

use rpc::Role;
use serde_json::Value;
use testkit::{Script, certificates};

/// Where commands run, and what answers them.
pub struct Scripted {
    pub directory: tempfile::TempDir,
    /// The scheduler.
    pub script: Script,
}

impl Scripted {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates::write(directory.path(), &[]);
        let files = certificates::files(directory.path(), "admin");
        let identity = certificates::identity(directory.path(), Role::Scheduler);
        let script = Script::start(&identity, &[Role::Admin]).await;
        let context = client::Context {
            scheduler: script.address.to_string(),
            image_builder: "127.0.0.1:1".to_owned(),
            edge: "127.0.0.1:1".to_owned(),
            api: "https://localhost:1".to_owned(),
            endpoint_domain: "microvms.localhost".to_owned(),
            ca: files.ca,
            cert: files.cert,
            key: files.key,
            s3: client::S3Access {
                endpoint: "http://127.0.0.1:1".to_owned(),
                region: "us-east-1".to_owned(),
                access_key_id: "AKIAROOT".to_owned(),
                secret_access_key: "root".to_owned(),
            },
        };
        std::fs::write(client::Context::file(directory.path()), context.to_toml()).unwrap();
        Self { directory, script }
    }

    pub async fn torpor(&self, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_torpor"))
            .args(arguments)
            .env("TORPOR_DATA_DIR", self.directory.path())
            .output()
            .await
            .unwrap()
    }

    pub async fn json(&self, arguments: &[&str]) -> Value {
        let output = self.torpor(&[arguments, &["-o", "json"]].concat()).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
