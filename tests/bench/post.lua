-- For wrk: one row of about 320 bytes a request, its fields random, with 14 headers, two of which differ in each request
-- as behind a CDN. The requests are made once, and sent in turn.

local POOL = 5000

local headers = {
  ["Host"] = "127.0.0.1",
  ["Authorization"] = "Bearer secret",
  ["Content-Type"] = "application/x-ndjson",
  ["User-Agent"] = "undici",
  ["Accept"] = "*/*",
  ["Accept-Encoding"] = "gzip, br",
  ["CF-Connecting-IP"] = "203.0.113.9",
  ["CF-IPCountry"] = "DE",
  ["CF-Visitor"] = '{"scheme":"https"}',
  ["CF-Worker"] = "example.com",
  ["X-Forwarded-For"] = "203.0.113.9",
  ["X-Forwarded-Proto"] = "https",
}

math.randomseed(7)

local function hex(length)
  local digits = {}
  for i = 1, length do
    digits[i] = string.format("%x", math.random(0, 15))
  end
  return table.concat(digits)
end

local function row()
  return string.format(
    '{"workspaceId":"ws_%s","keySpaceId":"ks_%s","keyId":"key_%s","requestId":"req_%s","time":17189%d,'
      .. '"requestedResource":"api.example.com/v1/users","edgeRegion":"fra","region":"aws:us-east-1","deniedReason":"",'
      .. '"ipAddress":"203.0.113.%d","userAgent":"Mozilla/5.0","n":%d}',
    hex(4), hex(4), hex(16), hex(24), math.random(10000000, 99999999), math.random(100, 255), math.random(100000, 999999)
  )
end

local pool = {}
for i = 1, POOL do
  headers["CF-Ray"] = string.format("%08x%08x-FRA", i * 2654435761 % 4294967296, i)
  headers["traceparent"] = string.format("00-%032x-%016x-01", i, i)
  pool[i] = wrk.format("POST", wrk.path, headers, row())
end

local sent = 0

request = function()
  sent = sent % POOL + 1
  return pool[sent]
end
