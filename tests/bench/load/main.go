// An open loop: load [-rate R] [-rows N] [-connections C] [-slice DURATION] URL
//
// Sends N requests, R a second whether or not the answers keep up, each with one row of some 320 bytes: an id of its own
// (1 to N), random keys, and a few values that repeat. A latency counts from the moment its request was due, so that a
// stall is felt by every request behind it. Prints one JSON object.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"
)

const timeout = 30 * time.Second

type summary struct {
	FromS float64 `json:"from_s"`
	Sent  int     `json:"sent"`
	P50Ms float64 `json:"p50_ms"`
	P99Ms float64 `json:"p99_ms"`
	MaxMs float64 `json:"max_ms"`
}

type report struct {
	summary
	Bad      map[string]int `json:"bad"` // by status, or "no answer"
	ElapsedS float64        `json:"elapsed_s"`
	Slices   []summary      `json:"slices"`
}

// row builds the request number i; blanks after the id keep the size the same (leading zeros would not be JSON).
func row(into []byte, i int) []byte {
	x := uint64(i)*0x9E3779B97F4A7C15 + 1
	x ^= x >> 29
	y := x * 0xBF58476D1CE4E5B9
	y ^= y >> 32
	return fmt.Appendf(into, `{"id":%-9d,"workspaceId":"ws_%04x","keySpaceId":"ks_%04x","keyId":"key_%016x",`+
		`"requestId":"req_%016x%08x","time":%d,"requestedResource":"api.example.com/v1/users","edgeRegion":"fra",`+
		`"region":"aws:us-east-1","deniedReason":"","ipAddress":"203.0.113.%03d","userAgent":"Mozilla/5.0"}`,
		i, x%97, y%211, x, y, uint32(x>>7), 1718900000000+i, y%256)
}

func request(into []byte, head string, body []byte, i int) []byte {
	x := uint64(i) * 0xD6E8FEB86659FD93
	into = fmt.Appendf(into[:0], "%sCF-Ray: %016x-FRA\r\ntraceparent: 00-%016x%016x-%016x-01\r\nContent-Length: %d\r\n\r\n",
		head, x, x, ^x, x^x>>31, len(body))
	return append(into, body...)
}

type connection struct {
	host string
	conn net.Conn
	in   *bufio.Reader
}

// exchange sends one request and reads its whole answer; a connection that broke or was closed is replaced next time.
func (c *connection) exchange(bytes []byte) (status int, err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.host, timeout); err != nil {
			c.conn = nil
			return 0, err
		}
		c.in = bufio.NewReader(c.conn)
	}
	defer func() {
		if err != nil {
			c.conn.Close()
			c.conn = nil
		}
	}()
	_ = c.conn.SetDeadline(time.Now().Add(timeout))
	if _, err = c.conn.Write(bytes); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if answer.Close {
		c.conn.Close()
		c.conn = nil
	}
	return answer.StatusCode, err
}

// percentile is the smallest of the sorted values that the share p of them do not exceed.
func percentile(sorted []time.Duration, p float64) float64 {
	at := max(0, int(math.Ceil(p*float64(len(sorted))))-1)
	return float64(sorted[at].Microseconds()) / 1000
}

func summarize(from time.Duration, latencies []time.Duration) summary {
	sorted := append([]time.Duration(nil), latencies...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	return summary{from.Seconds(), len(sorted), percentile(sorted, 0.5), percentile(sorted, 0.99), percentile(sorted, 1)}
}

func main() {
	rate := flag.Float64("rate", 1000, "requests a second")
	rows := flag.Int("rows", 10000, "requests in all")
	connections := flag.Int("connections", 64, "keep-alive connections")
	slice := flag.Duration("slice", 10*time.Second, "also summarize each slice of this length")
	token := flag.String("token", "secret", "sent as Authorization: Bearer")
	flag.Parse()
	target, err := url.Parse(flag.Arg(0))
	if err != nil || target.Host == "" || *rate <= 0 || *rows < 1 || *connections < 1 || *slice <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"+
		"Content-Type: application/x-ndjson\r\nUser-Agent: undici\r\nAccept: */*\r\nAccept-Encoding: gzip, br\r\n"+
		"CF-Connecting-IP: 203.0.113.9\r\nCF-IPCountry: DE\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n",
		target.RequestURI(), target.Host, *token)

	latencies := make([]time.Duration, *rows)
	bad := map[string]int{}
	var mu sync.Mutex
	var group sync.WaitGroup
	due := func(i int) time.Duration { return time.Duration(float64(i) / *rate * float64(time.Second)) }
	start := time.Now().Add(100 * time.Millisecond)
	for c := 0; c < *connections; c++ {
		group.Add(1)
		go func() {
			defer group.Done()
			line := &connection{host: target.Host}
			var body, bytes []byte
			for i := c; i < *rows; i += *connections {
				body = row(body[:0], i+1)
				bytes = request(bytes, head, body, i+1)
				at := start.Add(due(i))
				time.Sleep(time.Until(at))
				status, err := line.exchange(bytes)
				latencies[i] = time.Since(at)
				if err == nil && status < 300 {
					continue
				}
				reason := "no answer"
				if err == nil {
					reason = strconv.Itoa(status)
				}
				mu.Lock()
				bad[reason]++
				mu.Unlock()
			}
		}()
	}
	group.Wait()

	found := report{summary: summarize(0, latencies), Bad: bad, ElapsedS: time.Since(start).Seconds()}
	for from := 0; from < *rows; {
		to := from
		for begins := due(from); to < *rows && due(to) < begins.Truncate(*slice)+*slice; {
			to++
		}
		found.Slices = append(found.Slices, summarize(due(from).Truncate(*slice), latencies[from:to]))
		from = to
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
}
