// SPDX-License-Identifier: BSD-3-Clause

// goqmp SOCKET: talks to a control socket through go-qemu, the QMP library for Go,
// and prints what it gets, a line each.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

func must(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func main() {
	m, err := qmp.NewSocketMonitor("unix", os.Args[1], 10*time.Second)
	must(err)
	must(m.Connect())
	fmt.Println("capabilities", m.Capabilities)
	for _, command := range []string{"query-version", "query-schema",
		"query-commands", "query-jobs", "no-such-command"} {
		reply, err := m.Run([]byte(`{"execute":"` + command + `"}`))
		fmt.Println(command, len(reply) > 0, err)
	}
	events, err := m.Events(context.Background())
	must(err)
	go m.Run([]byte(`{"execute":"index-existing"}`))
	for i := 0; i < 2; i++ {
		select {
		case e := <-events:
			fmt.Println(e.Event, e.Data["id"], e.Data["status"])
		case <-time.After(20 * time.Second):
			fmt.Println("no event")
		}
	}
	os.Exit(0)
}
