//! What Dockerfiles of today mean, as BuildKit has it: what stands in each case was seen in the field.

use api::image::v1::*;

use crate::machine::{ended, log};
use crate::world::World;

/// An artifact: its name, and its files by their paths.
type Artifact = (&'static str, Vec<(&'static str, &'static str)>);
/// One with lines that its build's log must have, in this order.
type Good = (Artifact, &'static [&'static str]);
/// One with what the reason of its failure must have.
type Bad = (Artifact, &'static str);

const END: &str = "CMD [\"/x\"]\n";

fn good() -> Vec<Good> {
    let ignored = |dockerfile, ignore: Vec<(&'static str, &'static str)>| {
        let files = ["a.py", "sub/b.py", "sub/c.txt", ".git/HEAD"].map(|path| (path, "x"));
        [vec![("Dockerfile", dockerfile)], files.into(), ignore].concat()
    };
    const LIST: &str = "FROM debian-12\nCOPY . /src\nRUN cd /src; echo src: $(ls -d .git a.py sub/* Dockerfile 2>&- || true)\nCMD [\"/x\"]\n";
    vec![
        (
            (
                "heredocs",
                vec![(
                    "Dockerfile",
                    "# syntax=docker/dockerfile:1\n\
                 FROM debian-12\n\
                 RUN <<EOF\nset -e\nmkdir -p /srv\necho built > /srv/mark\nEOF\n\
                 COPY <<-'CONF' /srv/app.conf\n\tport=8080\n\tpath=$HOME/not-expanded\nCONF\n\
                 RUN <<'EOF' bash\na=(x y); echo ${#a[@]} > /srv/count\nEOF\n\
                 COPY <<ONE <<TWO /two/\none\nONE\ntwo\nTWO\n\
                 COPY <<SQL /srv/q.sql\nSELECT name\nFROM users\nSQL\n\
                 RUN true && \\\n# FROM nowhere\n  true\n\
                 RUN cat /srv/mark /srv/app.conf /srv/count /two/ONE /two/TWO /srv/q.sql\nCMD [\"/x\"]\n",
                )],
            ),
            &[
                "built",
                "port=8080",
                "path=$HOME/not-expanded",
                "2",
                "one",
                "two",
                "SELECT name",
                "FROM users",
            ],
        ),
        (
            (
                "shells-and-onbuild",
                vec![(
                    "Dockerfile",
                    "FROM debian-12 AS base\n\
                 SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\n\
                 RUN a=(x y); [[ ${#a[@]} -eq 2 ]] && echo array ok\n\
                 RUN false | cat || echo pipe failed\n\
                 ONBUILD RUN echo built upon\n\
                 FROM base\n\
                 VOLUME /data\n\
                 RUN mkdir -p /data && echo kept > /data/x\n\
                 RUN cat /data/x\nCMD [\"/x\"]\n",
                )],
            ),
            &["array ok", "pipe failed", "built upon", "kept"],
        ),
        (
            (
                "flags-and-arguments",
                vec![
                    (
                        "Dockerfile",
                        "ARG VERSION=1\n\
                     FROM --platform=$BUILDPLATFORM debian-12 AS build-amd64\n\
                     FROM build-${TARGETARCH}\n\
                     ARG TARGETARCH\n\
                     RUN echo arch: $TARGETARCH\n\
                     COPY --link a.txt /a\n\
                     COPY --chmod=a+rX,go-w dir/ /d/\n\
                     COPY --chmod=750 a.txt /run.sh\n\
                     COPY --chown=1000700000:100000 --chmod=0640 a.txt /owned\n\
                     COPY --from=debian-12:1 /etc/passwd /of-base\n\
                     RUN ls -n /a /d/f /run.sh /owned | while read m n u g rest; do echo $m $u $g; done; head -n 1 /of-base\n\
                     RUN --mount=type=cache,target=/c echo one > /c/n; cat /c/n\n\
                     RUN --mount=type=bind,source=a.txt,target=/bound cat /bound\nCMD [\"/x\"]\n",
                    ),
                    ("a.txt", "of the artifact\n"),
                    ("dir/f", "f"),
                ],
            ),
            &[
                "arch: amd64",
                "-rwxr-xr-x 0 0",
                "-rwxr-xr-x 0 0",
                "-rw-r----- 1000700000 100000",
                "-rwxr-x--- 0 0",
                "root:x:0:0:root:/:/bin/sh",
                "one",
                "of the artifact",
            ],
        ),
        (
            ("ignores-all-but", ignored(LIST, vec![(".dockerignore", "\u{feff}*\r\n!**/*.py\r\n")])),
            &["src: a.py sub/b.py"],
        ),
        (
            (
                "ignores-its-own-way",
                ignored(
                    LIST,
                    vec![(".dockerignore", "sub"), ("Dockerfile.dockerignore", "**\n!./a.py\n!sub/\n")],
                ),
            ),
            &["src: a.py sub/b.py sub/c.txt"],
        ),
        (
            ("ignores-the-dockerfile", ignored(LIST, vec![(".dockerignore", "Dockerfile\nsub\n")])),
            &["src: .git a.py"],
        ),
        (
            (
                "capabilities",
                vec![(
                    "Dockerfile",
                    "FROM debian-12\nRUN while read name value; do [ \"$name\" != CapEff: ] || echo can: $value; done < /proc/self/status\n\
                 CMD [\"/x\"]\n",
                )],
            ), // Docker's own: with AUDIT_WRITE, MKNOD, NET_RAW and SYS_CHROOT.
            &["can: 00000000a80425fb"],
        ),
    ]
}

fn bad() -> Vec<Bad> {
    let one = |text| vec![("Dockerfile", text)];
    vec![
        (
            (
                "fails-in-a-pipe",
                one(
                    "FROM debian-12\nSHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN echo going; false | cat\n",
                ),
            ),
            "failed at line 3, step 2/2: RUN echo going; false | cat (exit code 1). It said last: going",
        ),
        (
            (
                "replaces-a-link",
                vec![("Dockerfile", "FROM debian-12\nCOPY rootfs/ /\n"), ("rootfs/bin/tool", "x")],
            ),
            "line 2, step 2/2: COPY rootfs/ / (cannot copy to non-directory:",
        ),
        (("parents", one("FROM debian-12\nCOPY --parents a/b /p/\n")), "line 2 has COPY --parents"),
        (("other-cpu", one("FROM --platform=linux/arm64 debian-12\n")), "asks for images for linux/arm64"),
        (("other-frontend", one("# syntax=acme/frontend\nFROM debian-12\n")), "the frontend 'acme/frontend'"),
        (
            (
                "in-a-stage",
                one(
                    "FROM debian-12 AS tests\nRUN echo first\nRUN echo 3 of 4 passed; echo one failed; exit 7\nFROM debian-12\n\
                 COPY --from=tests /x /x\n",
                ),
            ),
            "line 3, step 3/3 of stage tests: RUN echo 3 of 4 passed; echo one failed; exit 7 (exit code 7). It said last: 3 of 4 \
             passed / one failed",
        ),
    ]
}

#[tokio::test]
async fn dockerfiles_mean_what_they_mean_to_buildkit() {
    let world = World::start().await;
    world.tiny_base().await;
    let builder = world.builder(world.settings("builder")).await;
    let mut client = builder.client.clone();
    let (good, bad) = (good(), bad());
    let all: Vec<&Artifact> =
        good.iter().map(|(artifact, _)| artifact).chain(bad.iter().map(|(artifact, _)| artifact)).collect();
    // No more at a time than a fleet takes.
    for some in all.chunks(4) {
        for (name, files) in some {
            let order = world.order(name, files).await;
            client.create_image(order).await.unwrap();
        }
        for (name, _) in some {
            ended(&mut client, name).await;
        }
    }
    for ((name, files), expected) in good {
        let text = files.iter().find(|(path, _)| *path == "Dockerfile").unwrap().1;
        assert!(text.ends_with(END), "{name}");
        let ended = ended(&mut client, name).await;
        let (lines, _) = log(&mut client, &ended.build_id, false).await;
        assert_eq!(ended.state(), BuildState::Successful, "{name}: {}: {lines:#?}", ended.state_reason);
        let mut rest = lines.iter();
        for wanted in expected {
            assert!(rest.any(|line| line == wanted), "{name} did not say {wanted:?} in its turn: {lines:#?}");
        }
    }
    for ((name, _), expected) in bad {
        let ended = ended(&mut client, name).await;
        assert_eq!(ended.state(), BuildState::Failed, "{name}");
        assert!(ended.state_reason.contains(expected), "{name}: {}", ended.state_reason);
    }
    builder.stop().await;
}
