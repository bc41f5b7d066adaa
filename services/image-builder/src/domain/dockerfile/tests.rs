use super::*;
use proptest::prelude::*;

fn bases() -> Bases {
    Bases(BTreeMap::from([("debian-12".to_owned(), vec![1, 2])]))
}

fn variables() -> BTreeMap<String, String> {
    BTreeMap::from([("PIP_CERT".to_owned(), "/run/torpor/ca.pem".to_owned())])
}

fn aliases() -> Aliases {
    Aliases::from([("al2023-1".to_owned(), "debian-12".to_owned())])
}

fn prepared(source: &[u8], variables: &BTreeMap<String, String>) -> Result<Plan, Refusal> {
    let (bases, aliases) = (bases(), aliases());
    prepare(source, Offered { bases: &bases, aliases: &aliases, pinned: None, cpu: "amd64" }, variables)
}

#[track_caller]
fn check(source: &str, expected: &str) {
    let plan = prepared(source.as_bytes(), &BTreeMap::new()).unwrap();
    assert_eq!(plan.text, expected, "{source}");
}

#[test]
fn from_lines_are_resolved_and_the_rest_is_left_alone() {
    check("FROM debian-12\nRUN true\n", "FROM localhost/torpor/debian-12:2\nRUN true\n");
    check("# hi\nfrom debian-12:1 as build", "# hi\nFROM localhost/torpor/debian-12:1 AS build\n");
    check("FROM al2023-1\nRUN true\n", "FROM localhost/torpor/debian-12:2\nRUN true\n");
    check("FROM python:3.12\n", "FROM docker.io/library/python:3.12\n");
    check("FROM --platform=linux/amd64 scratch\n", "FROM --platform=linux/amd64 scratch\n");
    check(
        "FROM debian-12 AS one\nRUN a \\\n  FROM x\nFROM one\nCOPY --from=one /a /b\n",
        "FROM localhost/torpor/debian-12:2 AS one\nRUN a \\\n  FROM x\nFROM one\nCOPY --from=one /a /b\n",
    );
    check(
        "ARG BASE=debian-12\nARG V=${X:-1}\nFROM ${BASE}:$V\n",
        "ARG BASE=debian-12\nARG V=${X:-1}\nFROM localhost/torpor/debian-12:1\n",
    );
    check(
        "# escape=`\nFROM `\n  debian-12\nRUN dir c:\\\n",
        "# escape=`\nFROM localhost/torpor/debian-12:2\nRUN dir c:\\\n",
    );
    check(
        "FROM debian-12\nRUN a \\\n# comment\n\n  b\n",
        "FROM localhost/torpor/debian-12:2\nRUN a \\\n# comment\n\n  b\n",
    );
}

#[test]
fn the_request_pins_its_base_unless_the_line_names_a_version() {
    let with = |source: &str| {
        let (bases, aliases) = (bases(), aliases());
        let offered =
            Offered { bases: &bases, aliases: &aliases, pinned: Some(("debian-12", 1)), cpu: "amd64" };
        prepare(source.as_bytes(), offered, &BTreeMap::new()).unwrap().local_bases
    };
    assert_eq!(with("FROM debian-12"), [("debian-12".to_owned(), 1)]);
    assert_eq!(with("FROM debian-12:2"), [("debian-12".to_owned(), 2)]);
    assert_eq!(with("FROM al2023-1"), [("debian-12".to_owned(), 1)]);
}

#[test]
fn unusable_dockerfiles_say_why() {
    let error = |source: &str| prepared(source.as_bytes(), &BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(error("RUN true\n"), "The Dockerfile has no FROM line.");
    assert_eq!(error(""), "The Dockerfile has no FROM line.");
    assert_eq!(error("FROM\n"), "The Dockerfile's line 1 names no image: FROM ");
    assert_eq!(error("\nFROM $NOTHING\n"), "The Dockerfile's line 2 names no image: FROM $NOTHING");
    let unknown = error("FROM debian-12:7\n");
    assert!(
        unknown.contains("'debian-12:7'") && unknown.contains("Local base images: debian-12."),
        "{unknown}"
    );
    assert_eq!(
        prepared(b"FROM \xff", &BTreeMap::new()).unwrap_err().to_string(),
        "The Dockerfile is not UTF-8 text."
    );
}

#[test]
fn images_for_another_cpu_are_refused_in_words() {
    let refused =
        |source: &str| prepared(source.as_bytes(), &BTreeMap::new()).err().map(|error| error.to_string());
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
    for own in ["linux/amd64", "linux/x86_64", "linux/amd64/v2", "$BUILDPLATFORM", "windows/amd64", "linux/"]
    {
        assert_eq!(refused(&format!("FROM --platform={own} scratch\n")), None, "{own}");
    }
}

#[test]
fn variables_are_arguments_and_stay_out_of_the_step_count() {
    let plan = prepared(b"FROM debian-12\nRUN true\n", &variables()).unwrap();
    assert_eq!(plan.text, "FROM localhost/torpor/debian-12:2\nARG PIP_CERT=/run/torpor/ca.pem\nRUN true\n");
    for (line, shown) in [
        ("STEP 1/3: FROM localhost/torpor/debian-12:2", Some("STEP 1/2: FROM debian-12")),
        ("STEP 2/3: ARG PIP_CERT=/run/torpor/ca.pem", None),
        ("STEP 3/3: RUN true", Some("STEP 2/2: RUN true")),
        ("[2/2] STEP 3/3: RUN true", Some("[2/2] STEP 2/2: RUN true")),
        ("NEXT STEP 3/3: RUN true", Some("NEXT STEP 3/3: RUN true")),
        ("hello", Some("hello")),
    ] {
        assert_eq!(plan.translate(line).as_deref(), shown, "{line}");
    }
    let odd = BTreeMap::from([("A".to_owned(), "x \"y\" $z".to_owned())]);
    assert_eq!(argument_line(&odd), r#"ARG A="x \"y\" \$z""#);
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_not_a_panic(source in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = prepared(&source, &variables());
    }

    #[test]
    fn instructions_cover_the_source(source in "([A-Z#\\\\ \n$a{}:-]{0,200})") {
        let joined: String = instructions(&source).iter().map(|instruction| instruction.raw).collect();
        prop_assert_eq!(joined, source);
    }

    #[test]
    fn any_line_translates(line in ".{0,80}") {
        let plan = prepared(b"FROM debian-12\n", &variables()).unwrap();
        let _ = plan.translate(&line);
        let _ = plan.translate(&format!("STEP {line}"));
    }
}
