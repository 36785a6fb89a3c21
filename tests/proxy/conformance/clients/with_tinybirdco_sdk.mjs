// npm @tinybirdco/sdk, as an application uses it.
import { createClient } from "@tinybirdco/sdk";

export function run({ base_url: baseUrl, token, datasource, rows, wait, max_retries: maxRetries, query }) {
  const client = createClient({ baseUrl, token });
  if (query !== null) return client.sql(query);
  const options = {};
  if (wait !== null) options.wait = wait;
  if (maxRetries !== null) options.maxRetries = maxRetries;
  return rows.length === 1
    ? client.datasources.ingest(datasource, rows[0], options)
    : client.ingestBatch(datasource, rows, options);
}
