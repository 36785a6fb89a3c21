// Lets one Node client do what it is told: node drive.mjs <client>, with jobs and answers as JSON lines.
//
// A job is answered with {"status": n} for every answer that the client was given, as it arrives, and then with
// {"returned": …} or {"raised": {"type", "message", "status"}}.
import { subscribe } from "node:diagnostics_channel";
import { createInterface } from "node:readline";

const { run } = await import(`./with_${process.argv[2]}.mjs`);

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

// Node's own fetch tells whoever listens what it receives; the clients are left as they are.
subscribe("undici:request:headers", ({ response }) => say({ status: response.statusCode }));

for await (const line of createInterface({ input: process.stdin })) {
  try {
    say({ returned: (await run(JSON.parse(line))) ?? null });
  } catch (error) {
    say({ raised: { type: error.constructor.name, message: error.message, status: error.statusCode ?? null } });
  }
}
