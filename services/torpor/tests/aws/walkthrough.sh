#!/usr/bin/env bash
# The public walkthrough of the service with nothing but the AWS CLI, zip and curl, as it is printed: only the
# bucket is this fleet's, and curl is told the port of the endpoints. (In the Dockerfile FROM names the fleet's base.)
#
#   walkthrough.sh APP_DIRECTORY NAME        after: eval "$(torpor env)"
set -euo pipefail
app=$1 name=$2

say() { echo "== $*" >&2; }

# Polls a command until it prints a word; another one that ends the wait fails.
wait_for() {
    local wanted=$1 never=$2 state deadline=$((SECONDS + 300))
    shift 2
    until state=$("$@") && [[ $state == "$wanted" ]]; do
        [[ $state != "$never" ]] || { echo "it is $state instead of $wanted" >&2; return 1; }
        ((SECONDS < deadline)) || { echo "still $state after five minutes" >&2; return 1; }
        read -rt 0.5 <> <(:) || true
    done
}

say "package and upload"
zip_file=$(mktemp -u --suffix=.zip)
trap 'rm -f "$zip_file"' EXIT
(cd "$app" && zip -q -r "$zip_file" .)
aws s3 cp "$zip_file" "s3://$TORPOR_ARTIFACT_BUCKET/$name.zip"

say "create the image"
image=$(aws lambda-microvms create-microvm-image \
    --name "$name" \
    --code-artifact "uri=s3://$TORPOR_ARTIFACT_BUCKET/$name.zip" \
    --base-image-arn "arn:aws:lambda:$AWS_REGION:aws:microvm-image:al2023-1" \
    --build-role-arn arn:aws:iam::123456789012:role/MicroVMBuildRole \
    --query imageArn --output text)

say "wait for it"
wait_for CREATED CREATE_FAILED \
    aws lambda-microvms get-microvm-image --image-identifier "$image" --query state --output text

say "run a MicroVM"
run=$(aws lambda-microvms run-microvm \
    --image-identifier "$image" \
    --ingress-network-connectors "arn:aws:lambda:$AWS_REGION:aws:network-connector:aws-network-connector:ALL_INGRESS" \
    --egress-network-connectors "arn:aws:lambda:$AWS_REGION:aws:network-connector:aws-network-connector:INTERNET_EGRESS" \
    --idle-policy '{"maxIdleDurationSeconds":900,"suspendedDurationSeconds":300,"autoResumeEnabled":true}' \
    --maximum-duration-in-seconds 14400 \
    --query '[microvmId,endpoint]' --output text)
read -r microvm endpoint <<<"$run"
wait_for RUNNING TERMINATED \
    aws lambda-microvms get-microvm --microvm-identifier "$microvm" --query state --output text

say "call it"
token=$(aws lambda-microvms create-microvm-auth-token \
    --microvm-identifier "$microvm" \
    --expiration-in-minutes 30 \
    --allowed-ports '[{"port":8080}]' \
    --query 'authToken."X-aws-proxy-auth"' --output text)
call() {
    curl --silent --show-error --fail --cacert "$AWS_CA_BUNDLE" \
        "https://$endpoint:${TORPOR_EDGE##*:}/" --header "X-aws-proxy-auth: $token"
    echo
}
call
call

say "suspend and resume"
aws lambda-microvms suspend-microvm --microvm-identifier "$microvm"
wait_for SUSPENDED TERMINATED \
    aws lambda-microvms get-microvm --microvm-identifier "$microvm" --query state --output text
aws lambda-microvms resume-microvm --microvm-identifier "$microvm"
wait_for RUNNING TERMINATED \
    aws lambda-microvms get-microvm --microvm-identifier "$microvm" --query state --output text
call

say "suspend, and let a request wake it"
aws lambda-microvms suspend-microvm --microvm-identifier "$microvm"
call

say "clean up"
aws lambda-microvms terminate-microvm --microvm-identifier "$microvm"
wait_for TERMINATED none \
    aws lambda-microvms get-microvm --microvm-identifier "$microvm" --query state --output text
aws lambda-microvms delete-microvm-image --image-identifier "$image"
aws s3 rm "s3://$TORPOR_ARTIFACT_BUCKET/$name.zip"
