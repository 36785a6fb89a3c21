// npm @chronark/zod-bird, as an application uses it.
import { Tinybird } from "@chronark/zod-bird";
import { z } from "zod";

export async function run({ base_url: baseUrl, token, datasource, rows, one_by_one, wait, query }) {
  const tinybird = new Tinybird({ baseUrl, token });
  if (query !== null) {
    // It knows pipes only, and insists on what every pipe answers.
    return tinybird.buildPipe({ pipe: "hits_by_day", data: z.any() })({});
  }
  const options = { datasource, event: z.any() };
  if (wait !== null) options.wait = wait;
  const ingest = tinybird.buildIngestEndpoint(options);
  if (one_by_one) {
    const results = [];
    for (const row of rows) results.push(await ingest(row));
    return results;
  }
  return ingest(rows.length === 1 ? rows[0] : rows);
}
