//! Base images: which there are, and where their files are.

use std::io;
use std::path::PathBuf;

use crate::adapters::base;
use crate::adapters::catalog::{Catalog, Error as CatalogError};
use crate::domain::dockerfile::Bases;
use crate::pipeline::Context;

/// Largest compressed base image.
const BASE_BYTES_MAX: u64 = 8 << 30;

/// The base images of the fleet.
///
/// # Errors
/// When etcd does not answer.
pub async fn known(catalog: &Catalog) -> Result<Bases, CatalogError> {
    let mut bases = Bases::default();
    for record in catalog.bases().await? {
        if let Some(base) = record.value.base
            && let Ok(version) = base.version.parse()
        {
            bases.0.entry(base.name).or_default().push(version);
        }
    }
    Ok(bases)
}

/// The compressed tar of a base image on this machine, fetched from S3 when it
/// was made elsewhere. Its digest is checked when it arrives.
///
/// # Errors
/// When it is not to be had, or not what its record says.
pub async fn local_tar(context: &Context, name: &str, version: &str) -> io::Result<PathBuf> {
    let path = context.layout.base(name, version);
    if path.exists() {
        return Ok(path);
    }
    let bases = context.catalog.bases().await.map_err(io::Error::other)?;
    let entry = bases
        .into_iter()
        .map(|record| record.value)
        .find(|entry| entry.base.as_ref().is_some_and(|base| base.name == name && base.version == version))
        .ok_or_else(|| io::Error::other("there is no such base image any more"))?;
    let arriving = path.with_extension(format!("{}.part", uuid::Uuid::new_v4()));
    let bucket = &context.settings.snapshot_bucket;
    let fetched = context
        .objects
        .get_file(bucket, &entry.key, &arriving, BASE_BYTES_MAX, &|_, _| {})
        .await
        .map_err(io::Error::other);
    let checked = match fetched {
        Ok(_) => verified(arriving.clone(), &entry.digest).await,
        Err(error) => Err(error),
    };
    if let Err(error) = checked {
        let _ = tokio::fs::remove_file(&arriving).await;
        return Err(error);
    }
    // Dying before this line leaves a file that nobody reads.
    tokio::fs::rename(&arriving, &path).await?;
    Ok(path)
}

async fn verified(path: PathBuf, expected: &str) -> io::Result<()> {
    let digest =
        tokio::task::spawn_blocking(move || base::digest(&path)).await.map_err(io::Error::other)??;
    if digest == expected {
        Ok(())
    } else {
        Err(io::Error::other("its stored bytes do not match their digest"))
    }
}
