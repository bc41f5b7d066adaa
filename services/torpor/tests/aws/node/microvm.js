// Runs a microVM, calls it before and after a sleep, and ends it, with the AWS SDK for JavaScript and fetch. It is told the
// image alone; the rest comes from `torpor env`, but for the port of endpoints, where that is not 443.
//
//   node microvm.js IMAGE_ARN [PORT]        NODE_PATH names the node_modules with @aws-sdk/client-lambda-microvms

const sdk = require("@aws-sdk/client-lambda-microvms");

const [imageIdentifier, port = "443"] = process.argv.slice(2);
const client = new sdk.LambdaMicrovmsClient({});

async function reached(microvmIdentifier, state) {
  for (let asked = 0; asked < 600; asked += 1) {
    const microvm = await client.send(new sdk.GetMicrovmCommand({ microvmIdentifier }));
    if (microvm.state === state) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`${microvmIdentifier} is not ${state} after a minute`);
}

async function main() {
  const { microvmId, endpoint } = await client.send(new sdk.RunMicrovmCommand({
    imageIdentifier,
    idlePolicy: { maxIdleDurationSeconds: 3600, suspendedDurationSeconds: 3600, autoResumeEnabled: true },
  }));
  const microvmIdentifier = microvmId;
  try {
    const { authToken } = await client.send(new sdk.CreateMicrovmAuthTokenCommand({
      microvmIdentifier,
      expirationInMinutes: 5,
      allowedPorts: [{ port: 8080 }],
    }));
    const call = async () => {
      const answer = await fetch(`https://${endpoint}:${port}/`, { headers: authToken });
      return { status: answer.status, ...await answer.json() };
    };
    const first = await call();
    await client.send(new sdk.SuspendMicrovmCommand({ microvmIdentifier }));
    await reached(microvmIdentifier, "SUSPENDED");
    console.log(JSON.stringify([first, await call()]));
  } finally {
    await client.send(new sdk.TerminateMicrovmCommand({ microvmIdentifier }));
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
