# Steps that deploy/quickstart and deploy/test share. Sourced, with the repository as the working directory.

started_at=$SECONDS
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

# A heading for what comes next, with the time so far.
step() { printf '\n== [%4ds] %s\n' $((SECONDS - started_at)) "$*" >&2; }

fail() {
    echo "error: $1" >&2
    [[ -z ${2:-} ]] || echo "next: $2" >&2
    exit "${3:-1}"
}

# The one prerequisite: a Rust toolchain that is new enough.
need_rust() {
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    [[ -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    local how="install Rust $wanted or newer with rustup (see the Rust project's site), then open a new shell"
    command -v cargo >/dev/null || fail "cargo is missing" "$how" 2
    have=$(cargo --version | cut -d' ' -f2)
    [[ $(printf '%s\n' "$wanted" "${have%%-*}" | sort -V | head -n1) == "$wanted" ]] ||
        fail "cargo is $have, Torpor needs $wanted or newer" "$how" 2
}

need_root() {
    [[ $(id -u) -eq 0 ]] || fail "this makes network namespaces and mounts and needs root" "run it with sudo" 2
}

# Compiles the programs of a fleet.
build_programs() {
    cargo build --release --locked --bins -p torpor -p scheduler -p image-builder -p host-agent -p edge-proxy "$@"
}

# Builds the static guest-agent and makes the guest bundle in a directory.
build_bundle() {
    deploy/guest-bundle "$1"
}
