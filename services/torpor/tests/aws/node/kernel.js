// JupyterLab's own client and one kernel of the Jupyter server at an endpoint. Each line of standard input is a cell; each
// answer is a line of JSON. From the environment: URL, TOKEN and NOTEBOOK_TOKEN.
//
//   node kernel.js        NODE_PATH names the node_modules with @jupyterlab/services and ws

const readline = require("node:readline");
const { KernelManager, ServerConnection } = require("@jupyterlab/services");
const WebSocket = require("ws");

const headers = {
  "X-aws-proxy-auth": process.env.TOKEN,
  "X-aws-proxy-port": "8888",
  Authorization: `token ${process.env.NOTEBOOK_TOKEN}`,
};
const say = (answer) => console.log(JSON.stringify(answer));
let sockets = 0;

// The client's own WebSocket, with the headers that a page's would not need: its cookie says the same.
class Socket extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { headers });
    sockets += 1;
  }
}

async function run(kernel, code) {
  const future = kernel.requestExecute({ code });
  let text = "";
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === "stream") text += content.text;
    if (header.msg_type === "error") text += `${content.ename}: ${content.evalue}`;
  };
  const reply = await future.done;
  say({ status: reply.content.status, text, count: reply.content.execution_count, sockets });
}

async function main() {
  const url = process.env.URL;
  const serverSettings = ServerConnection.makeSettings({
    baseUrl: url,
    wsUrl: url.replace(/^http/, "ws"),
    init: { headers },
    WebSocket: Socket,
  });
  // A page that nobody looks at: it asks for no lists of kernels, which would wake the microVM.
  const manager = new KernelManager({ serverSettings, standby: () => true });
  const kernel = await manager.startNew({ name: "python3" });
  const { language_info: language } = await kernel.info;
  say({ language: language.name, sockets });
  for await (const code of readline.createInterface({ input: process.stdin })) await run(kernel, code);
  await kernel.shutdown();
}

main().then(() => process.exit(0), (error) => {
  console.error(error);
  process.exit(1);
});
