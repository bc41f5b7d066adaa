//! What a request may say, and what an answer fills in.

use std::collections::HashMap;

use api::common::v1::{Architecture, CpuConfiguration, Hook, HookMode, Hooks};

use super::*;

/// Creates an image with a changed configuration.
async fn create(
    cell: &Cell<'_>,
    name: &str,
    change: impl FnOnce(&mut ImageConfiguration),
) -> Result<CreateImageResponse, Status> {
    let mut order = cell.order(name).await;
    change(order.configuration.as_mut().unwrap());
    Ok(cell.client.clone().create_image(order).await?.into_inner())
}

#[track_caller]
fn invalid(answer: Result<CreateImageResponse, Status>, field: &str, message: &str) {
    let status = refused(answer, "INVALID_ARGUMENT", message);
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert_eq!(violations[0].field, field);
}

fn hook(mode: HookMode) -> Option<Hook> {
    Some(Hook { mode: mode.into(), timeout: None })
}

#[tokio::test]
async fn requests() {
    run![
        an_unknown_base_version_is_refused_before_anything_is_made,
        answers_are_complete,
        a_role_is_recorded_or_left_out_but_has_its_form,
        hooks_of_microvms_need_the_ready_hook,
        hooks_need_a_port,
        some_environment_keys_are_reserved_and_there_are_a_hundred_at_most,
        a_builds_connector_is_the_way_to_the_internet,
        a_new_image_has_fifty_tags_at_most;
        own only_architectures_of_hosts_are_built_for, requests_are_checked_before_anything_is_made
    ];
}

async fn an_unknown_base_version_is_refused_before_anything_is_made(cell: &Cell<'_>) {
    let base = "arn:aws:lambda:us-east-1:aws:microvm-image:debian-12";
    let answer = create(cell, "app", |c| {
        c.base_image_arn = base.to_owned();
        c.base_image_version = "999".to_owned();
    })
    .await;
    let message = format!(
        "No managed MicroVM Image with arn {base} and version 999 is available. Local base images: debian-12."
    );
    invalid(answer, "baseImageArn", &message);
    assert_eq!(cell.try_get("app").await.unwrap_err().code(), Code::NotFound);
    let left = cell.catalog.store().list("").await.unwrap().0;
    let left: Vec<String> = left.into_iter().map(|(key, _)| key).collect();
    assert_eq!(left, ["base-images/debian-12/1"]);
}

async fn answers_are_complete(cell: &Cell<'_>) {
    let role = "arn:aws:iam::123456789012:role/team/build";
    let key = "arn:aws:kms:us-east-1:123456789012:alias/images";
    let answer = create(cell, "app", |c| {
        c.base_image_version = "1".to_owned();
        c.build_role_arn = role.to_owned();
        c.kms_key_identifier = key.to_owned();
    })
    .await
    .unwrap();
    let version = answer.version.unwrap();
    let configuration = version.configuration.unwrap();
    assert_eq!(
        (configuration.base_image_arn.as_str(), configuration.base_image_version.as_str()),
        ("arn:aws:lambda:us-east-1:aws:microvm-image:debian-12", "1.0")
    );
    assert_eq!(
        (configuration.build_role_arn.as_str(), configuration.kms_key_identifier.as_str()),
        (role, key)
    );
    assert_eq!(
        configuration.egress_network_connectors,
        ["arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS"]
    );
    assert_eq!(configuration.resources.unwrap().minimum_memory_mib, 2048);
    assert_eq!((configuration.cpu_configurations, configuration.hooks), (vec![], None));
    cell.until_state("app", ImageState::CreateFailed).await;
    let stored = cell.version("app", "1.0").await.unwrap().configuration.unwrap();
    assert_eq!((stored.build_role_arn.as_str(), stored.base_image_version.as_str()), (role, "1.0"));
    assert_eq!(stored.kms_key_identifier, key);
}

async fn a_role_is_recorded_or_left_out_but_has_its_form(cell: &Cell<'_>) {
    create(cell, "without", |c| c.build_role_arn.clear()).await.unwrap();
    let answer = create(cell, "malformed", |c| c.build_role_arn = "build".to_owned()).await;
    invalid(
        answer,
        "buildRoleArn",
        "buildRoleArn: must be the ARN of a role, 'arn:aws:iam::<12 digits>:role/<name>', of at most \
         2048 characters",
    );
    cell.until_state("without", ImageState::CreateFailed).await;
}

async fn hooks_of_microvms_need_the_ready_hook(cell: &Cell<'_>) {
    let answer = create(cell, "app", |c| {
        c.hooks = Some(Hooks { port: 8080, run: hook(HookMode::Enabled), ..Hooks::default() });
    })
    .await;
    invalid(
        answer,
        "hooks.microvmImageHooks.ready",
        "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook (run, resume, suspend, \
         or terminate) is enabled.",
    );
}

async fn hooks_need_a_port(cell: &Cell<'_>) {
    let answer = create(cell, "app", |c| {
        c.hooks = Some(Hooks { ready: hook(HookMode::Enabled), ..Hooks::default() });
    })
    .await;
    let message = "The port of the MicroVM image hooks is required when hooks are given.";
    invalid(answer, "hooks.port", message);
}

async fn some_environment_keys_are_reserved_and_there_are_a_hundred_at_most(cell: &Cell<'_>) {
    let path = "environmentVariables";
    let answer = create(cell, "app", |c| {
        c.environment_variables = HashMap::from([("AWS_REGION".to_owned(), "x".to_owned())]);
    })
    .await;
    let message = "Environment variable key 'AWS_REGION' is reserved";
    invalid(answer, &format!("{path}.AWS_REGION"), message);
    let many = |count: usize| (0..count).map(|n| (format!("K{n}"), "v".to_owned())).collect();
    let answer = create(cell, "app", |c| c.environment_variables = many(101)).await;
    invalid(answer, path, &format!("{path}: must be at most 100"));
    create(cell, "app", |c| c.environment_variables = many(100)).await.unwrap();
    cell.until_state("app", ImageState::CreateFailed).await;
}

async fn only_architectures_of_hosts_are_built_for(world: &World) {
    let cell = Cell::with(world, |settings| settings.build.architectures = vec!["X86_64".to_owned()]).await;
    let cpu = |architecture: Architecture| vec![CpuConfiguration { architecture: architecture.into() }];
    let answer = create(&cell, "arm", |c| {
        c.cpu_configurations = cpu(Architecture::Arm64);
    })
    .await;
    invalid(
        answer,
        "cpuConfigurations[0].architecture",
        "No host of this fleet has the CPU architecture ARM_64; it has X86_64. Leave cpuConfigurations out to build for what \
         it has.",
    );
    create(&cell, "x86", |c| {
        c.cpu_configurations = cpu(Architecture::X8664);
    })
    .await
    .unwrap();
    cell.until_state("x86", ImageState::CreateFailed).await;
    let mut client = cell.client.clone();
    let build = crate::world::newest(&mut client, "x86").await;
    assert_eq!((build.architecture(), build.chipset_generation.as_str()), (Architecture::X8664, "1"));
    assert_eq!(build.snapshot_build, None, "nothing was made");
    cell.stop().await;
}

async fn a_builds_connector_is_the_way_to_the_internet(cell: &Cell<'_>) {
    let path = "egressNetworkConnectors";
    let answer = create(cell, "app", |c| {
        c.egress_network_connectors = vec!["INTERNET_EGRESS".to_owned()];
    })
    .await;
    invalid(answer, &format!("{path}[0]"), "Malformed network connector ARN");
}

async fn a_new_image_has_fifty_tags_at_most(cell: &Cell<'_>) {
    let tags = |count: usize| (0..count).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    let mut order = cell.order("app").await;
    order.tags = tags(51);
    let answer = cell.client.clone().create_image(order.clone()).await;
    refused(answer, "INVALID_ARGUMENT", "tags: must be at most 50");
    order.tags = tags(50);
    cell.client.clone().create_image(order).await.unwrap();
    cell.until_state("app", ImageState::CreateFailed).await;
}

async fn requests_are_checked_before_anything_is_made(world: &World) {
    let cell = Cell::with(world, |settings| settings.build.unfinished_max = 0).await;
    let mut client = cell.client.clone();
    let mut order = world.store("bad name!", Vec::new()).await;
    let configuration = order.configuration.as_mut().unwrap();
    configuration.resources = Some(api::common::v1::Resources { minimum_memory_mib: 700 });
    configuration.base_image_version = "9".to_owned();
    let refused = client.create_image(order).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for path in [
        "name:",
        "No managed MicroVM Image with arn debian-12 and version 9 is available",
        "resources[0].minimumMemoryInMiB:",
    ] {
        assert!(refused.message().contains(path), "{}", refused.message());
    }
    let order = world.store("good", Vec::new()).await;
    let refused = client.create_image(order).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("QUOTA_EXCEEDED"));
    let request = GetImageRequest { image_identifier: "none".to_owned() };
    assert_eq!(client.get_image(request).await.unwrap_err().code(), Code::NotFound);
    let request = GetImageBuildRequest { build_id: "none".to_owned() };
    assert_eq!(client.get_image_build(request).await.unwrap_err().code(), Code::NotFound);
    cell.stop().await;
}
