//! Who may read and write what in etcd.
//!
//! etcd takes the common name of a client's certificate for the user, at every call anew: there is no password, no token that
//! runs out, and nothing to renew after a restart. It needs `--client-cert-auth`.

use std::collections::BTreeSet;

use etcd_client::{AuthClient, Permission, PermissionType, RoleRevokePermissionOptions, UserAddOptions};
use futures::future::BoxFuture;

use crate::members::bounded;
use crate::store::prefix_end;
use crate::{Error, Result, Store};

/// The user, and the role, that may do everything and change rights. etcd prescribes the name.
pub const ROOT_USER: &str = "root";

/// A user of etcd and all that it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The common name in its certificate.
    pub name: String,
    pub rights: Vec<Right>,
}

/// Access to some keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    pub access: Access,
    pub keys: Keys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// What is written with a condition is read by it, so nobody writes without reading.
    ReadWrite,
}

/// Keys without the root prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// This key alone.
    One(String),
    /// Every key that starts with this.
    Under(String),
}

/// A permission as etcd compares them: its kind, and the range of keys.
type Permitted = (i32, Vec<u8>, Vec<u8>);

impl Store {
    /// Gives every one of `users` its rights and no others, and has etcd refuse everybody else from then on. The caller must be
    /// [`ROOT_USER`], or be there before anybody's rights are looked at. Done twice it changes nothing; broken off anywhere it is
    /// done by the next call: rights are looked at only once the root user and all others are there.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: may be tried again. [`Error::Refused`]: the caller is not [`ROOT_USER`].
    pub fn enforce<'a>(&'a self, users: &'a [User]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.permit(users).await?;
            let mut auth = self.client()?.auth_client();
            add_role(&mut auth, ROOT_USER).await?;
            add_user(&mut auth, ROOT_USER).await?;
            // From here on the caller is asked for its certificate's name, too.
            bounded("enabling rights", auth.auth_enable()).await.map(drop)
        })
    }

    /// As [`Store::enforce`] without the last step: for users who come later.
    pub fn permit<'a>(&'a self, users: &'a [User]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut auth = self.client()?.auth_client();
            for user in users {
                // A role of its own for each, under the same name. A user without it yet may do nothing.
                add_role(&mut auth, &user.name).await?;
                self.set_permissions(&mut auth, user).await?;
                add_user(&mut auth, &user.name).await?;
            }
            Ok(())
        })
    }

    async fn set_permissions(&self, auth: &mut AuthClient, user: &User) -> Result<()> {
        let wanted =
            user.rights.iter().map(|right| self.permitted(right)).collect::<Result<BTreeSet<_>>>()?;
        let role = bounded("role", auth.role_get(user.name.as_str())).await?;
        let found: BTreeSet<Permitted> = role
            .permissions()
            .iter()
            .map(|found| (found.get_type(), found.key().to_vec(), found.range_end().to_vec()))
            .collect();
        // What is missing first, so that a service that runs never loses what it keeps.
        for (kind, key, end) in wanted.difference(&found) {
            let kind = PermissionType::try_from(*kind).unwrap_or_default();
            let permission = Permission::new(kind, key.clone()).with_range_end(end.clone());
            bounded("grant", auth.role_grant_permission(user.name.as_str(), permission)).await?;
        }
        let ranges: BTreeSet<_> = wanted.iter().map(|(_, key, end)| (key, end)).collect();
        for (_, key, end) in found.iter().filter(|(_, key, end)| !ranges.contains(&(key, end))) {
            let options = RoleRevokePermissionOptions::new().with_range_end(end.clone());
            let revoked = auth.role_revoke_permission(user.name.as_str(), key.clone(), Some(options));
            bounded("revocation", revoked).await?;
        }
        Ok(())
    }

    fn permitted(&self, right: &Right) -> Result<Permitted> {
        let kind = match right.access {
            Access::Read => PermissionType::Read,
            Access::ReadWrite => PermissionType::Readwrite,
        };
        let (key, end) = match &right.keys {
            Keys::One(key) => (self.full(key)?, Vec::new()),
            Keys::Under(prefix) => {
                let key = self.full(prefix)?;
                let end = prefix_end(&key);
                (key, end)
            }
        };
        Ok((kind.into(), key, end))
    }
}

async fn add_role(auth: &mut AuthClient, name: &str) -> Result<()> {
    there_already(bounded("role", auth.role_add(name)).await.map(drop))
}

/// Adds a user with the role of the same name.
async fn add_user(auth: &mut AuthClient, name: &str) -> Result<()> {
    // Nobody can come with a password: the certificate alone counts.
    let options = Some(UserAddOptions::new().with_no_pwd());
    there_already(bounded("user", auth.user_add(name, "", options)).await.map(drop))?;
    let user = bounded("user", auth.user_get(name)).await?;
    if user.roles().iter().any(|role| role == name) {
        return Ok(());
    }
    bounded("grant", auth.user_grant_role(name, name)).await.map(drop)
}

fn there_already(added: Result<()>) -> Result<()> {
    match added {
        Err(Error::Refused { detail }) if detail.contains("already exists") => Ok(()),
        other => other,
    }
}
