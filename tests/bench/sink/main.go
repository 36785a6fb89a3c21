// A counting upstream on loopback: sink [-listen HOST:PORT] [-delay DURATION]
//
// Answers POST /v0/events as Tinybird does: 200 after the delay when wait=true, else 202 at once. It counts rows, and of
// rows with a numeric "id" it remembers which ids came and how many came again. GET /stats says it all as JSON.
// Says "listening HOST:PORT" once it does; port 0 is any free one.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Ids from here on are counted as rows but not told apart: the set is a bitmap.
const idLimit = 1 << 30

type stats struct {
	Rows       int64   `json:"rows"`
	Requests   int64   `json:"requests"`
	RawBytes   int64   `json:"raw_bytes"`
	WireBytes  int64   `json:"wire_bytes"`
	Distinct   int64   `json:"distinct"`
	Doubled    int64   `json:"doubled"`
	FirstRowAt float64 `json:"first_row_at"` // seconds since 1970; 0: none came yet
	LastRowAt  float64 `json:"last_row_at"`
}

type sink struct {
	delay time.Duration
	mu    sync.Mutex
	stats stats
	seen  []uint64
}

var idKey = []byte(`"id":`)

// idOf finds the digits after "id": in a row; blanks may follow them.
func idOf(row []byte) (id int, found bool) {
	at := bytes.Index(row, idKey)
	if at < 0 {
		return 0, false
	}
	for _, c := range row[at+len(idKey):] {
		if c < '0' || c > '9' || id >= idLimit {
			break
		}
		id, found = id*10+int(c-'0'), true
	}
	return id, found && id < idLimit
}

func (s *sink) count(body []byte, wireBytes int) (rows int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Requests++
	s.stats.RawBytes += int64(len(body))
	s.stats.WireBytes += int64(wireBytes)
	for len(body) > 0 {
		row, rest, _ := bytes.Cut(body, []byte{'\n'})
		body = rest
		if len(row) == 0 {
			continue
		}
		rows++
		id, found := idOf(row)
		if !found {
			continue
		}
		word, bit := id>>6, uint64(1)<<(id&63)
		for len(s.seen) <= word {
			s.seen = append(s.seen, make([]uint64, 1<<14)...)
		}
		if s.seen[word]&bit == 0 {
			s.stats.Distinct++
		} else {
			s.stats.Doubled++
		}
		s.seen[word] |= bit
	}
	if rows > 0 {
		s.stats.Rows += rows
		s.stats.LastRowAt = float64(time.Now().UnixNano()) / 1e9
		if s.stats.FirstRowAt == 0 {
			s.stats.FirstRowAt = s.stats.LastRowAt
		}
	}
	return rows
}

func (s *sink) events(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	wireBytes := len(body)
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "":
	case "gzip":
		var unzipped io.Reader
		if unzipped, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, err = io.ReadAll(unzipped)
		}
		if err != nil {
			http.Error(w, `{"error":"the body is not gzip"}`, http.StatusBadRequest)
			return
		}
	default:
		http.Error(w, `{"error":"the sink reads gzip only"}`, http.StatusUnsupportedMediaType)
		return
	}
	rows := s.count(body, wireBytes)
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("wait") == "true" {
		time.Sleep(s.delay)
		w.WriteHeader(http.StatusOK)
	} else {
		w.WriteHeader(http.StatusAccepted)
	}
	fmt.Fprintf(w, `{"successful_rows":%d,"quarantined_rows":0}`, rows)
}

func (s *sink) report(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.stats)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "where to listen")
	delay := flag.Duration("delay", 0, "how long wait=true takes")
	flag.Parse()
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	s := &sink{delay: *delay}
	http.HandleFunc("POST /v0/events", s.events)
	http.HandleFunc("GET /stats", s.report)
	fmt.Println("listening", listener.Addr())
	log.Fatal(http.Serve(listener, nil))
}
