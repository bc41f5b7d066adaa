use super::*;
use std::collections::BTreeMap;

use proptest::prelude::*;

fn bases() -> Bases {
    Bases(BTreeMap::from([("debian-12".to_owned(), vec![1, 2])]))
}

fn aliases() -> Aliases {
    Aliases::from([("al2023-1".to_owned(), "debian-12".to_owned())])
}

fn prepared(source: &[u8]) -> Result<Plan, Refusal> {
    let (bases, aliases) = (bases(), aliases());
    prepare(source, Offered { bases: &bases, aliases: &aliases, pinned: None, cpu: "amd64" })
}

/// The images that a Dockerfile uses: ours as "name version as what", others as they stand.
#[track_caller]
fn check(source: &str, expected: &[&str]) {
    let plan = prepared(source.as_bytes()).unwrap_or_else(|error| panic!("{source}: {error}"));
    let ours = plan
        .bases
        .iter()
        .map(|base| format!("{} {} as {}:{}", base.name, base.version, base.repository, base.tag));
    let found: Vec<String> = ours.chain(plan.remote_images).collect();
    assert_eq!(found, expected, "{source}");
}

#[test]
fn images_are_found_wherever_they_are_named() {
    check("FROM debian-12\nRUN true\n", &["debian-12 2 as debian-12:latest"]);
    check("# hi\nfrom debian-12:1 as build", &["debian-12 1 as debian-12:1"]);
    check("FROM al2023-1\n", &["debian-12 2 as al2023-1:latest"]);
    check("FROM python:3.12\n", &["python:3.12"]);
    check("FROM --platform=linux/amd64 scratch\n", &[]);
    check(
        "FROM debian-12 AS one\nRUN a \\\n  FROM x\nFROM one\nCOPY --from=one /a /b\nCOPY --from=0 /a /b\n",
        &["debian-12 2 as debian-12:latest"],
    );
    check("ARG BASE=debian-12\nARG V=${X:-1}\nFROM ${BASE}:$V\n", &["debian-12 1 as debian-12:1"]);
    check("# escape=`\nFROM `\n  debian-12\nRUN dir c:\\\n", &["debian-12 2 as debian-12:latest"]);
    check("FROM debian-12\nRUN a \\\n# FROM nowhere\n\n  b\n", &["debian-12 2 as debian-12:latest"]);
    check(
        "FROM --platform=$BUILDPLATFORM debian-12 AS build-amd64\nFROM build-${TARGETARCH}\nARG TARGETARCH\n",
        &["debian-12 2 as debian-12:latest"],
    );
    check(
        "FROM scratch\nCOPY --chmod=755 --from=debian-12:1 /bin/sh /sh\n\
         RUN --mount=type=bind,from=busybox,target=/b true\nCOPY --from=art-${NOTHING} / /x\n",
        &["debian-12 1 as debian-12:1", "busybox", "art-"],
    );
    check("\u{feff}FROM debian-12\r\nRUN true\r\n", &["debian-12 2 as debian-12:latest"]);
}

#[test]
fn texts_in_the_file_are_no_instructions() {
    let ours = &["debian-12 2 as debian-12:latest"];
    check("FROM debian-12\nCOPY <<SQL /q.sql\nSELECT name\nFROM users\nSQL\nRUN cat /q.sql\n", ours);
    check(
        "FROM debian-12\nRUN <<-'EOF' bash\n\tFROM users\n\tEOF\nCOPY <<A <<B /two/\nFROM a\nA\nFROM b\nB\n",
        ours,
    );
    check(
        "FROM debian-12\nRUN python3 - <<\"PY\"\nFROM = 1\nPY\nRUN cat <<<'FROM x'\nONBUILD RUN <<E\nFROM y\nE\n",
        ours,
    );
    check("FROM debian-12\nRUN printf 'SELECT 1\\n\\\nFROM users\\n' > /q\n", ours);
    // One that never ends is BuildKit's to refuse.
    check("FROM debian-12\nRUN <<EOF\nFROM users\n", ours);
}

#[test]
fn the_frontend_is_the_one_that_is_here() {
    let text = |source: &str| prepared(source.as_bytes()).map(|plan| plan.text);
    for name in ["docker/dockerfile:1", "docker.io/docker/dockerfile:1.7-labs", "docker/dockerfile@sha256:00"]
    {
        let source = format!("# syntax={name}\n# escape=`\nFROM debian-12\nRUN echo syntax\n");
        assert_eq!(text(&source).unwrap(), source.replacen("syntax", "frontend", 1));
    }
    assert_eq!(text("FROM scratch\n# syntax=other/one\n").unwrap(), "FROM scratch\n# syntax=other/one\n");
    let refused =
        text("# check=skip\n#syntax = ghcr.io/some/frontend:2\nFROM scratch\n").unwrap_err().to_string();
    assert!(refused.contains("line 2") && refused.contains("'ghcr.io/some/frontend:2'"), "{refused}");
}

#[test]
fn flags_that_builds_here_do_not_know_are_refused_with_what_does_the_same() {
    for (line, flag) in [
        ("COPY --link --parents a/b /c/", "COPY --parents"),
        ("COPY --exclude=*.md . /src/", "COPY --exclude"),
        ("ADD --unpack=true a.tar /a", "ADD --unpack"),
    ] {
        let refused = prepared(format!("FROM scratch\n{line}\n").as_bytes()).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("The Dockerfile's line 2 has {flag}, which")), "{refused}");
    }
    check("FROM scratch\nRUN x --parents\nCOPY --link --chmod=a+rX a --exclude=b /c\n", &[]);
}

#[test]
fn the_request_pins_its_base_unless_the_line_names_a_version() {
    let with = |source: &str| {
        let (bases, aliases) = (bases(), aliases());
        let offered =
            Offered { bases: &bases, aliases: &aliases, pinned: Some(("debian-12", 1)), cpu: "amd64" };
        prepare(source.as_bytes(), offered).unwrap().bases[0].version
    };
    assert_eq!([with("FROM debian-12"), with("FROM debian-12:2"), with("FROM al2023-1")], [1, 2, 1]);
}

#[test]
fn unusable_dockerfiles_say_why() {
    let error = |source: &str| prepared(source.as_bytes()).unwrap_err().to_string();
    assert_eq!(error("RUN true\n"), "The Dockerfile has no FROM line.");
    assert_eq!(error(""), "The Dockerfile has no FROM line.");
    assert_eq!(error("FROM\n"), "The Dockerfile's line 1 names no image: FROM ");
    assert_eq!(error("\nFROM $NOTHING\n"), "The Dockerfile's line 2 names no image: FROM $NOTHING");
    let unknown = error("FROM debian-12:7\n");
    assert!(
        unknown.contains("'debian-12:7'") && unknown.contains("Local base images: debian-12."),
        "{unknown}"
    );
    assert_eq!(prepared(b"FROM \xff").unwrap_err().to_string(), "The Dockerfile is not UTF-8 text.");
}

#[test]
fn images_for_another_cpu_are_refused_in_words() {
    let refused = |source: &str| prepared(source.as_bytes()).err().map(|error| error.to_string());
    assert_eq!(
        refused("FROM --platform=linux/arm64 al2023-1\n").as_deref(),
        Some(
            "The Dockerfile's line 1 asks for images for linux/arm64, but the hosts of this fleet run linux/amd64 and \
             emulate no other CPU: leave --platform out, or write --platform=linux/amd64."
        )
    );
    for other in ["linux/aarch64", "linux/arm64/v8", "$P"] {
        assert!(
            refused(&format!("ARG P=linux/arm64\nFROM --platform={other} scratch\n")).is_some(),
            "{other}"
        );
    }
    for own in [
        "linux/amd64",
        "linux/x86_64",
        "linux/amd64/v2",
        "$BUILDPLATFORM",
        "$TARGETPLATFORM",
        "windows/amd64",
        "linux/",
    ] {
        assert_eq!(refused(&format!("FROM --platform={own} scratch\n")), None, "{own}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_not_a_panic(source in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = prepared(&source);
    }

    #[test]
    fn any_text_is_cut_into_instructions(source in "([A-Z#\\\\ \n$a{}:<'=-]{0,200})") {
        let lines = source.lines().count();
        for instruction in instructions(&source) {
            prop_assert!((1..=lines).contains(&instruction.line));
        }
        let _ = prepared(format!("FROM scratch\n{source}").as_bytes());
    }
}
