//! Access keys: made, listed and deleted in etcd, guarded by leadership.
//! Nothing of them is kept here; the edges watch the same keys.

use std::sync::Arc;
use std::time::SystemTime;

use api::access::v1::{AccessKey, Policy, StoredAccessKey};
use records::{Committed, Expect, Write};

use super::Term;
use crate::adapters::access_keys as codec;
use crate::refusal::Refusal;

/// An access key as asked for, checked field by field.
#[derive(Debug, Clone, Default)]
pub struct NewAccessKey {
    pub description: String,
    /// What it may do; absent means everything.
    pub policy: Option<Policy>,
    /// When it stops working; absent means never.
    pub expire_time: Option<SystemTime>,
}

impl Term {
    /// Makes a key; it is durable when this returns. The secret is in the answer and in etcd, nowhere else.
    pub async fn create_access_key(
        self: &Arc<Self>,
        asked: NewAccessKey,
    ) -> Result<StoredAccessKey, Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            // One at a time, so that the limit is one.
            let _turn = term.access.lock().await;
            let limit = term.config().quotas.access_keys_max;
            if term.access_keys().await?.len() >= limit {
                return Err(Refusal::Quota {
                    quota: "access_keys",
                    limit,
                    text: format!("The limit of {limit} access keys is reached."),
                });
            }
            let (id, secret) = codec::generate().map_err(|error| Refusal::Internal(error.to_string()))?;
            let stored = StoredAccessKey {
                access_key: Some(AccessKey {
                    access_key_id: id.clone(),
                    account_id: term.config().account.clone(),
                    description: asked.description,
                    policy: asked.policy,
                    create_time: Some(api::timestamp(term.wall())),
                    expire_time: asked.expire_time.map(api::timestamp),
                }),
                secret_access_key: secret,
            };
            let write = Write::Put {
                key: format!("{}{id}", codec::PREFIX),
                value: codec::encode(&stored),
                expect: Expect::Absent,
                lease: None,
            };
            match term.commit(vec![write]).await? {
                Committed::At(_) => {
                    tracing::info!(access_key = id, "access key made");
                    Ok(stored)
                }
                Committed::Differs(_) => {
                    Err(Refusal::Internal(format!("the fresh access key id {id} is taken")))
                }
            }
        })
        .await
    }

    /// Every key by id, without secrets.
    pub async fn access_keys(&self) -> Result<Vec<AccessKey>, Refusal> {
        let (entries, _) = self.context.store.list(codec::PREFIX).await?;
        let keys = entries.iter().filter_map(|(key, value)| {
            let decoded = codec::decode(&value.value);
            if decoded.is_none() {
                tracing::error!(key, "an access key cannot be read and is left alone");
            }
            decoded
        });
        Ok(keys.collect())
    }

    pub async fn delete_access_key(self: &Arc<Self>, id: String) -> Result<(), Refusal> {
        let term = Arc::clone(self);
        self.detached(async move {
            let _turn = term.access.lock().await;
            let key = format!("{}{id}", codec::PREFIX);
            let found = term.context.store.get(&key).await?;
            let Some(found) = found else {
                return Err(Refusal::AccessKeyNotFound(id));
            };
            let write = Write::Delete { key, expect: Expect::Revision(found.revision) };
            match term.commit(vec![write]).await? {
                Committed::At(_) => {
                    tracing::info!(access_key = id, "access key deleted");
                    Ok(())
                }
                Committed::Differs(_) => {
                    Err(Refusal::Store("the access key was changed meanwhile".to_owned()))
                }
            }
        })
        .await
    }
}
