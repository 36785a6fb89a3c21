// npm @chronark/zod-bird, as an application uses it.
import { Tinybird } from "@chronark/zod-bird";
import { z } from "zod";

export function run({ base_url: baseUrl, token, datasource, rows, wait, query }) {
  const tinybird = new Tinybird({ baseUrl, token });
  if (query !== null) {
    // It knows pipes only, and insists on what every pipe answers.
    return tinybird.buildPipe({ pipe: "hits_by_day", data: z.any() })({});
  }
  const options = { datasource, event: z.any() };
  if (wait !== null) options.wait = wait;
  return tinybird.buildIngestEndpoint(options)(rows.length === 1 ? rows[0] : rows);
}
