//! Whole builds: real etcd, real S3 API, real BuildKit in its real sandbox. Needs root, and the
//! toolbox that TORPOR_TEST_TOOLBOX names (`deploy/toolbox`).

#![allow(clippy::unwrap_used)] // a test that cannot go on ends

mod dockerfiles;
mod failing;
mod machine;
mod neighbour;
#[path = "../support/peers.rs"]
mod peers;
mod updating;
#[path = "../support/world.rs"]
mod world;

use std::collections::HashMap;

use api::errors::reason_of;
use api::image::v1::*;
use api::microvm::v1::{Microvm, MicrovmState};
use machine::{build, ended, log};
use peers::WARNING;
use tonic::Code;
use world::{SNAPSHOTS, World, newest, until};

const APP: &str = "FROM debian-12\nRUN echo built > /made && env && ls /dev/torpor\nCOPY app.sh /app.sh\nENV MODE=test\n\
                   EXPOSE 8080\nUSER nobody\nCMD [\"/app.sh\"]\n";
const SCRIPT: &str = "#!/bin/sh\nsleep 1\n";

#[tokio::test]
async fn an_image_is_built_updated_and_deleted() {
    let world = World::start().await;
    world.tiny_base().await;
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let mut order = world.order("app", &[("Dockerfile", APP), ("app.sh", SCRIPT)]).await;
    order.client_token = "token-1".to_owned();
    order.configuration.as_mut().unwrap().environment_variables =
        HashMap::from([("SECRET".to_owned(), "hunter2".to_owned())]);

    let created = client.create_image(order.clone()).await.unwrap().into_inner();
    let (image, version) = (created.image.unwrap(), created.version.unwrap());
    assert_eq!((image.state(), version.state()), (ImageState::Creating, VersionState::Pending));
    assert_eq!(image.image_arn, "arn:aws:lambda:us-east-1:000000000000:microvm-image:app");
    assert_eq!((image.latest_active_image_version.as_str(), version.image_version.as_str()), ("", "1.0"));
    let begun = newest(&mut client, "app").await;
    let (lines, states) = log(&mut client, &begun.build_id, true).await;
    let finished = ended(&mut client, "app").await;
    assert_eq!(finished.state(), BuildState::Successful, "{}: {lines:#?}", finished.state_reason);

    // The log was followed live, in the user's own terms, and is in S3 as well.
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    assert!(has("[1/3] FROM docker.io/library/debian-12") && has("[3/3] COPY app.sh /app.sh"), "{lines:#?}");
    assert!(has("hello from the app") && !has("ARG ") && !has("hunter2"), "{lines:#?}");
    assert_eq!(states.last().unwrap().state(), BuildState::Successful);
    assert!(states.len() > 3, "each step is reported: {states:?}");
    assert_eq!(log(&mut client, &begun.build_id, false).await.0, lines, "the stored log is the same");
    assert_eq!(finished.log_lines, lines.len() as u64);

    // What RUN steps see besides is not in the image.
    let request = world.script.lock().unwrap().requests[0].clone();
    let app = request.app.unwrap();
    assert_eq!((app.command, app.user.as_str()), (vec!["/app.sh".to_owned()], "nobody"));
    assert_eq!(app.exposed_ports, [8080]);
    assert!(app.environment.contains(&"MODE=test".to_owned()));
    assert!(!app.environment.iter().any(|entry| entry.contains("/dev/torpor")), "{:?}", app.environment);
    assert_eq!((request.memory_mib, request.vcpu_count), (8192, 4));
    assert_eq!(request.environment_variables["SECRET"], "hunter2");
    assert_eq!(request.disk.unwrap().size_bytes, 8 << 30);

    assert_eq!((finished.chipset.as_str(), finished.chipset_generation.as_str()), ("EMULATED", "1"));
    let sizes = finished.snapshot_build.unwrap();
    assert!(sizes.code_install_size_bytes > 1 << 20 && sizes.memory_snapshot_size_bytes == 5000, "{sizes:?}");
    let phases: Vec<&str> = finished.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(phases, ["fetch", "unpack", "container", "disk", "bake", "publish"]);
    let get = GetImageVersionRequest { image_identifier: "app".into(), image_version: String::new() };
    let version = client.get_image_version(get.clone()).await.unwrap().into_inner().version.unwrap();
    assert_eq!((version.state(), version.status()), (VersionState::Successful, VersionStatus::Active));
    assert_eq!((&finished.warnings, &version.warnings), (&vec![WARNING.to_owned()], &finished.warnings));
    let manifest = version.snapshot.unwrap().manifest_key;
    until("the uploaded disk is gone", || async { world.keys(SNAPSHOTS, "disks/").await.is_empty() }).await;
    assert!(world.keys(SNAPSHOTS, "images/").await.contains(&manifest));

    // The token replays; with other parameters it is refused.
    let replayed = client.create_image(order.clone()).await.unwrap().into_inner();
    assert_eq!(replayed.image.unwrap().id, image.id);
    order.tags.insert("a".to_owned(), "b".to_owned());
    let refused = client.create_image(order.clone()).await.unwrap_err();
    assert_eq!(reason_of(&refused).as_deref(), Some("CLIENT_TOKEN_CONFLICT"));
    order.client_token.clear();
    let refused = client.create_image(order.clone()).await.unwrap_err();
    assert_eq!(refused.message(), "A MicroVM image with the name 'app' already exists in this account");

    // A second version fails; the first stays active.
    let begins_alike: String = APP.lines().take(2).map(|line| format!("{line}\n")).collect();
    let broken =
        world.order("app", &[("Dockerfile", &format!("{begins_alike}RUN false\nCMD [\"/x\"]\n"))]).await;
    let update = UpdateImageRequest {
        image_identifier: image.image_arn.clone(),
        configuration: broken.configuration,
        client_token: String::new(),
    };
    let updated = client.update_image(update.clone()).await.unwrap().into_inner();
    assert_eq!(updated.image.unwrap().state(), ImageState::Updating);
    let conflict = client.update_image(update).await.unwrap_err();
    assert_eq!(conflict.message(), "MicroVM Image is already in state: UPDATING");
    let failed = ended(&mut client, "app").await;
    assert_eq!(
        (failed.reason_code.as_str(), failed.step()),
        ("CONTAINER_BUILD_FAILED", BuildStep::Container)
    );
    assert_eq!(
        failed.state_reason,
        "The container image build failed at line 3, step 3/3: RUN false (exit code 1)."
    );
    assert_eq!(failed.snapshot_build, None, "there is nothing to have a size");
    let (lines, _) = log(&mut client, &failed.build_id, false).await;
    assert!(
        lines.iter().any(|line| line == "[2/3] cached"),
        "a build that succeeded left no cache: {lines:#?}"
    );
    let image = client.get_image(GetImageRequest { image_identifier: "app".into() }).await.unwrap();
    let image = image.into_inner().image.unwrap();
    assert_eq!(image.state(), ImageState::UpdateFailed);
    assert_eq!(
        (image.latest_active_image_version.as_str(), image.latest_failed_image_version.as_str()),
        ("1.0", "2.0")
    );

    // Retired versions cannot be launched.
    let retire = |status: VersionStatus| UpdateImageVersionRequest {
        image_identifier: "app".into(),
        image_version: "1.0".into(),
        status: status.into(),
    };
    client.update_image_version(retire(VersionStatus::Inactive)).await.unwrap();
    let none = client.get_image_version(get.clone()).await.unwrap_err();
    assert_eq!(reason_of(&none).as_deref(), Some("NO_ACTIVE_VERSION"));
    client.update_image_version(retire(VersionStatus::Active)).await.unwrap();

    // Not while microVMs live; then everything goes.
    world.set(|script| {
        script.microvms = vec![Microvm { state: MicrovmState::Suspended.into(), ..Microvm::default() }];
    });
    let delete = DeleteImageRequest { image_identifier: "app".into() };
    let used = client.delete_image(delete.clone()).await.unwrap_err();
    assert_eq!(used.message(), "Cannot delete microvm image with running microvms.");
    world.set(|script| script.microvms.clear());
    let deleting = client.delete_image(delete).await.unwrap().into_inner().image.unwrap();
    assert_eq!(deleting.state(), ImageState::Deleting);
    until("the image is gone", || {
        let mut client = client.clone();
        let request = GetImageRequest { image_identifier: "app".into() };
        async move { client.get_image(request).await.is_err_and(|status| status.code() == Code::NotFound) }
    })
    .await;
    assert_eq!(world.keys(SNAPSHOTS, "images/").await, Vec::<String>::new());
    assert_eq!(world.keys(SNAPSHOTS, "disks/").await, Vec::<String>::new());
    assert_eq!(world.keys(world::LOGS, "builds/").await, Vec::<String>::new());
    assert_eq!(world.script.lock().unwrap().evicted, [manifest]);
    let left = world.catalog.store().list("").await.unwrap().0;
    let mut left: Vec<String> = left.into_iter().map(|(key, _)| key).collect();
    left.retain(|key| !key.starts_with("image-tokens/"));
    let kept = ["base-images/debian-12/1", "image-admission"];
    assert_eq!(left, kept, "no record of the image is left");
    builder.stop().await;
}

#[tokio::test]
async fn bad_artifacts_fail_with_their_reason_and_leave_nothing() {
    let world = World::start().await;
    world.tiny_base().await;
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let dockerfile = |text: &'static str| vec![("Dockerfile", text)];
    for (name, files, code, text) in [
        ("no-dockerfile", vec![("app.py", "x")], "ARCHIVE_DOCKERFILE_NOT_FOUND", "no file named Dockerfile"),
        ("traversal", vec![("Dockerfile", "x"), ("../evil", "x")], "ARCHIVE_INVALID", "leads outside"),
        (
            "scratch",
            vec![("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "x")],
            "NO_START_COMMAND",
            "nothing to run",
        ),
        (
            "unknown-base",
            dockerfile("FROM torpor/nothing\n"),
            "BASE_IMAGE_NOT_FOUND",
            "Local base images: debian-12.",
        ),
        (
            "unknown-registry",
            dockerfile("FROM registry.invalid/app:1\nCMD [\"/x\"]\n"),
            "BASE_IMAGE_NOT_FOUND",
            "'registry.invalid/app:1'",
        ),
        ("bad-instruction", dockerfile("FROM debian-12\nNONSENSE x\n"), "CONTAINER_BUILD_FAILED", "NONSENSE"),
        (
            "bad-copy",
            dockerfile("FROM debian-12\nCOPY missing /x\n"),
            "CONTAINER_BUILD_FAILED",
            "step 2/2: COPY missing /x",
        ),
    ] {
        let order = world.order(name, &files).await;
        let ended = build(&mut client, order).await;
        assert_eq!(ended.reason_code, code, "{name}: {}", ended.state_reason);
        assert!(ended.state_reason.contains(text), "{name}: {}", ended.state_reason);
    }
    let order = world.store("not-a-zip", b"hello".to_vec()).await;
    let ended = build(&mut client, order).await;
    assert_eq!(ended.reason_code, "ARCHIVE_INVALID");
    let mut order = world.store("nowhere", Vec::new()).await;
    order.configuration.as_mut().unwrap().code_artifact.as_mut().unwrap().uri =
        "s3://torpor-artifacts/none".into();
    assert_eq!(build(&mut client, order).await.reason_code, "S3_NO_SUCH_KEY");
    let mut order = world.store("nowhere-2", Vec::new()).await;
    order.configuration.as_mut().unwrap().code_artifact.as_mut().unwrap().uri =
        "s3://no-such-bucket/k".into();
    assert_eq!(build(&mut client, order).await.reason_code, "S3_NO_SUCH_BUCKET");
    until("no disk is left", || async { world.keys(SNAPSHOTS, "disks/").await.is_empty() }).await;
    builder.stop().await;
}

#[tokio::test]
async fn build_steps_reach_nothing_of_the_machine() {
    let world = World::start().await;
    world.tiny_base().await;
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let etcd = world.etcd.endpoint();
    let port = etcd.rsplit(':').next().unwrap();
    let steps = format!(
        "FROM debian-12\n\
         RUN echo devices: $(ls /dev)\n\
         RUN echo map: $(cat /proc/self/uid_map)\n\
         RUN echo init: $(ls /proc/1/root); echo own: $(ls /)\n\
         RUN (echo b > /proc/sysrq-trigger) 2>&1 || echo no sysrq\n\
         RUN (timeout 2 bash -c 'echo > /dev/tcp/127.0.0.1/{port}') 2>&1 || echo no loopback\n\
         RUN (timeout 2 bash -c 'echo > /dev/tcp/169.254.240.1/{port}') 2>&1 || echo no link\n\
         RUN (timeout 2 bash -c 'echo > /dev/tcp/169.254.169.254/80') 2>&1 || echo no metadata\n\
         CMD [\"/x\"]\n"
    );
    let order = world.order("probe", &[("Dockerfile", &steps)]).await;
    let ended = build(&mut client, order).await;
    let (lines, _) = log(&mut client, &ended.build_id, false).await;
    assert_eq!(ended.state(), BuildState::Successful, "{}: {lines:#?}", ended.state_reason);
    let find = |start: &str| {
        lines.iter().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {lines:#?}"))
    };
    let devices = find("devices:");
    assert!(!devices.contains("kvm") && !devices.contains("vd") && !devices.contains("loop"), "{devices}");
    assert!(find("map:").contains("2000000000 65536"), "{lines:#?}");
    // A step's first process is its own, in the image's tree.
    assert_eq!(find("init:").replace("init:", "own:"), *find("own:"));
    for text in ["no sysrq", "no loopback", "no link", "no metadata"] {
        find(text);
    }
    builder.stop().await;
}

/// What is private to the machine's owner is closed to builds as it is to guests, and open where a setting says so.
#[tokio::test]
async fn networks_that_are_closed_to_guests_are_closed_to_builds() {
    let world = World::start().await;
    world.tiny_base().await;
    let neighbour = neighbour::Neighbour::start();
    let server = neighbour.server();
    let (address, port) = (server.ip(), server.port());
    let steps = format!(
        "FROM debian-12\nRUN timeout 2 bash -c 'cat < /dev/tcp/{address}/{port}' || echo nothing\nCMD [\"/x\"]\n"
    );
    let closed = world.settings("closed");
    let mut open = world.settings("open");
    open.build.open_networks = vec![neighbour.network()];
    for (settings, expected) in [(closed, "nothing"), (open, neighbour::GREETING)] {
        let builder = world.builder(settings).await;
        let mut client = builder.client.clone();
        let order = world.order(&format!("probe-{expected}"), &[("Dockerfile", &steps)]).await;
        let ended = build(&mut client, order).await;
        let (lines, _) = log(&mut client, &ended.build_id, false).await;
        assert_eq!(ended.state(), BuildState::Successful, "{}: {lines:#?}", ended.state_reason);
        let heard: Vec<&str> = ["nothing", neighbour::GREETING]
            .into_iter()
            .filter(|text| lines.iter().any(|line| line == text))
            .collect();
        assert_eq!(heard, [expected], "{lines:#?}");
        builder.stop().await;
    }
}
