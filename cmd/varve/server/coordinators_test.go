package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
)

func TestCoordinatorMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCoordinatorMetrics(reg)
	c.load = func() (groups, txns coordinator.Load) {
		return coordinator.Load{Shards: 50, Loading: 3, Queued: 7, Writing: 2}, coordinator.Load{Shards: 4}
	}
	reg.MustRegister(c)
	var e broker.Events
	c.listen(&e)
	e.CoordinatorLoaded("group", 20, 2000, 2*time.Second)
	e.CoordinatorLoaded("group", 10, 1000, 3*time.Second)
	e.CoordinatorLoadFailed("group")
	e.CoordinatorRefused("transaction")
	e.CoordinatorRefused("transaction")
	e.CoordinatorBadRecord("group")
	w := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	got := ""
	for line := range strings.Lines(help.ReplaceAllString(w.Body.String(), "")) {
		if !strings.Contains(line, "_bucket{") {
			got += line
		}
	}
	want := `varve_coordinator_appending_commands{coordinator="group"} 2
varve_coordinator_appending_commands{coordinator="transaction"} 0
varve_coordinator_bad_records_total{coordinator="group"} 1
varve_coordinator_bad_records_total{coordinator="transaction"} 0
varve_coordinator_load_bytes_total{coordinator="group"} 3000
varve_coordinator_load_bytes_total{coordinator="transaction"} 0
varve_coordinator_load_errors_total{coordinator="group"} 1
varve_coordinator_load_errors_total{coordinator="transaction"} 0
varve_coordinator_load_records_total{coordinator="group"} 30
varve_coordinator_load_records_total{coordinator="transaction"} 0
varve_coordinator_partition_load_seconds_sum{coordinator="group"} 5
varve_coordinator_partition_load_seconds_count{coordinator="group"} 2
varve_coordinator_partition_load_seconds_sum{coordinator="transaction"} 0
varve_coordinator_partition_load_seconds_count{coordinator="transaction"} 0
varve_coordinator_partitions{coordinator="group",state="active"} 47
varve_coordinator_partitions{coordinator="group",state="loading"} 3
varve_coordinator_partitions{coordinator="transaction",state="active"} 4
varve_coordinator_partitions{coordinator="transaction",state="loading"} 0
varve_coordinator_queued_commands{coordinator="group"} 7
varve_coordinator_queued_commands{coordinator="transaction"} 0
varve_coordinator_refused_total{coordinator="group"} 0
varve_coordinator_refused_total{coordinator="transaction"} 2
`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
