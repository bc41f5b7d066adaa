#!/bin/sh
# What BuildKit runs a step by: crun, with variables and files that no layer keeps. They lie in the step's /dev, which goes with
# it. Control groups are the build's, whatever version the machine has, and steps see none.
set -eu
before=
bundle=
for argument; do
    [ "$before" != --bundle ] || bundle=$argument
    before=$argument
done
if [ -n "$bundle" ]; then
    jq --slurpfile given /run/torpor/steps.json '
        ([.process.env[] | split("=")[0]]) as $set
        | .process.env += [$given[0].env | to_entries[] | select(.key as $name | $set | index($name) | not) | "\(.key)=\(.value)"]
        | .mounts |= map(select(.type != "cgroup" and .type != "cgroup2")) + $given[0].mounts
        | del(.linux.cgroupsPath, .linux.resources)' "$bundle/config.json" >"$bundle/config.json.new"
    mv "$bundle/config.json.new" "$bundle/config.json"
fi
exec crun --cgroup-manager=disabled "$@"
