// The yardstick: goproxy -listen HOST:PORT -upstream URL
//
// What a batching proxy costs in Go with net/http when it does the least that it could: it checks the token, counts line
// feeds, appends the body to its data source's buffer, answers 202, and sends each buffer once a second. It looks at no
// row, limits nothing, compresses nothing, and forgets what cannot be delivered.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"sync"
	"time"
)

type proxy struct {
	upstream string
	mu       sync.Mutex
	buffers  map[string]*bytes.Buffer
}

func (p *proxy) flush() {
	p.mu.Lock()
	full := p.buffers
	p.buffers = map[string]*bytes.Buffer{}
	p.mu.Unlock()
	for name, buffer := range full {
		request, err := http.NewRequest("POST", p.upstream+"/v0/events?name="+url.QueryEscape(name), buffer)
		if err != nil {
			continue
		}
		request.Header.Set("Authorization", "Bearer t")
		if answer, err := http.DefaultClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	}
}

func (p *proxy) events(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer secret" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	name := r.URL.Query().Get("name")
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if len(body) > 0 && body[len(body)-1] != '\n' {
		body = append(body, '\n')
	}
	rows := bytes.Count(body, []byte{'\n'})
	p.mu.Lock()
	buffer := p.buffers[name]
	if buffer == nil {
		buffer = &bytes.Buffer{}
		p.buffers[name] = buffer
	}
	buffer.Write(body)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"successful_rows":%d,"quarantined_rows":0}`, rows)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:8190", "where to listen")
	upstream := flag.String("upstream", "", "where to send")
	flag.Parse()
	p := &proxy{upstream: *upstream, buffers: map[string]*bytes.Buffer{}}
	go func() {
		for range time.Tick(time.Second) {
			p.flush()
		}
	}()
	http.HandleFunc("POST /v0/events", p.events)
	log.Fatal(http.ListenAndServe(*listen, nil))
}
