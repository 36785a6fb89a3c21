// npm @tinybirdco/sdk, as an application uses it.
import { createClient } from "@tinybirdco/sdk";

export async function run(job) {
  const { base_url: baseUrl, token, datasource, rows, wait, max_retries: maxRetries, query } = job;
  const client = createClient({ baseUrl, token });
  if (query !== null) return client.sql(query);
  const options = {};
  if (wait !== null) options.wait = wait;
  if (maxRetries !== null) options.maxRetries = maxRetries;
  if (job.one_by_one) {
    const results = [];
    for (const row of rows) results.push(await client.datasources.ingest(datasource, row, options));
    return results;
  }
  return rows.length === 1
    ? client.datasources.ingest(datasource, rows[0], options)
    : client.ingestBatch(datasource, rows, options);
}
