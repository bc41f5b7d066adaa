//! `torpor usage`: what microVMs used, as a bill would say it.

use std::collections::{BTreeMap, HashMap};

use api::common::v1::Metering;
use api::microvm::v1::{GetUsageRequest, GetUsageResponse};

use super::Session;
use super::calls::all_microvms;
use crate::cli::microvm::{Usage, UsageBy};
use crate::durations;
use crate::error::CliError;
use crate::output;

/// Stands for images without tags, those that are gone among them.
const UNTAGGED: &str = "(no tag)";

pub async fn run(session: &Session, arguments: Usage) -> Result<(), CliError> {
    let rows = match arguments.by {
        UsageBy::Microvm => {
            let microvms = all_microvms(session, None, None).await?;
            let used = |microvm: api::microvm::v1::Microvm| {
                (microvm.microvm_id, microvm.metering.unwrap_or_default())
            };
            microvms.into_iter().map(used).collect()
        }
        by => group(by, session.call(GetUsageRequest { days: arguments.days }).await?),
    };
    if session.json() {
        let rows = rows.iter().map(|(of, used)| {
            serde_json::json!({
                "of": of,
                "vcpuSeconds": used.vcpu_seconds,
                "baselineGibSeconds": used.baseline_gib_seconds,
                "burstGibSeconds": used.burst_gib_seconds,
                "snapshotBytesRead": used.snapshot_bytes_read,
                "snapshotBytesWritten": used.snapshot_bytes_written,
                "endpointBytes": used.endpoint_bytes,
            })
        });
        return output::value(&serde_json::Value::Array(rows.collect()));
    }
    let header = ["of", "vCPU-s", "GiB-s baseline", "GiB-s burst", "snapshots read", "written", "endpoint"];
    let row = |(of, used): &(String, Metering)| {
        [
            of.clone(),
            format!("{:.1}", used.vcpu_seconds),
            format!("{:.1}", used.baseline_gib_seconds),
            format!("{:.1}", used.burst_gib_seconds),
            output::bytes(used.snapshot_bytes_read),
            output::bytes(used.snapshot_bytes_written),
            output::bytes(used.endpoint_bytes),
        ]
    };
    output::table(header, &rows, row, "nothing was used")
}

/// Totals by what is asked for, in the order of its names. An image with several tags counts for each of them.
fn group(by: UsageBy, answer: GetUsageResponse) -> Vec<(String, Metering)> {
    let tags: HashMap<String, Vec<String>> = answer
        .images
        .into_iter()
        .map(|image| {
            let tags = image.tags.into_iter().map(|(key, value)| format!("{key}={value}"));
            (image.image_name, tags.collect())
        })
        .collect();
    let mut totals: BTreeMap<String, Metering> = BTreeMap::new();
    for row in answer.rows {
        let used = row.used.unwrap_or_default();
        let of = match by {
            UsageBy::Day | UsageBy::Microvm => {
                vec![durations::rfc3339(row.day.as_ref()).chars().take(10).collect()]
            }
            UsageBy::Image => vec![row.image_name],
            UsageBy::Tag => tags
                .get(&row.image_name)
                .filter(|tags| !tags.is_empty())
                .cloned()
                .unwrap_or_else(|| vec![UNTAGGED.to_owned()]),
        };
        for of in of {
            let total = totals.entry(of).or_default();
            *total = total.plus(used);
        }
    }
    totals.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::microvm::v1::{ImageTags, UsageRow};

    #[test]
    fn rows_are_grouped() {
        let row = |day: i64, image: &str, vcpu_seconds| UsageRow {
            day: Some(prost_types::Timestamp { seconds: day * 86_400, nanos: 0 }),
            image_name: image.to_owned(),
            used: Some(Metering { vcpu_seconds, ..Default::default() }),
        };
        let tags = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let answer = GetUsageResponse {
            rows: vec![row(0, "app", 1.0), row(0, "web", 2.0), row(1, "app", 4.0), row(1, "gone", 8.0)],
            images: vec![
                ImageTags { image_name: "app".to_owned(), tags: tags(&[("team", "a"), ("env", "test")]) },
                ImageTags { image_name: "web".to_owned(), tags: tags(&[("team", "a")]) },
            ],
        };
        for (by, expected) in [
            (UsageBy::Day, &[("1970-01-01", 3.0), ("1970-01-02", 12.0)][..]),
            (UsageBy::Image, &[("app", 5.0), ("gone", 8.0), ("web", 2.0)]),
            (UsageBy::Tag, &[("(no tag)", 8.0), ("env=test", 5.0), ("team=a", 7.0)]),
        ] {
            let found = group(by, answer.clone());
            let found: Vec<(&str, f64)> =
                found.iter().map(|(of, used)| (of.as_str(), used.vcpu_seconds)).collect();
            assert_eq!(found, expected, "{by:?}");
        }
    }
}
