package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/varve/varve/broker"
	"github.com/varve/varve/broker/coordinator"
)

var help = regexp.MustCompile(`(?m)^#.*\n`)

func TestGroupMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		lag := func(group string, partition int32, records int64) broker.GroupLag {
			return broker.GroupLag{Group: group, Topic: "t", Partition: partition, Records: records}
		}
		lags := broker.GroupLags{
			// Two names that are the same in a label: the second is not shown, or the scrape would fail.
			Known:   []broker.GroupLag{lag("a", 0, 7), lag("a", 1, 0), lag("x\xfe", 0, 1), lag("x\xfe", 1, 2), lag("x\xff", 0, 3), lag("x\xff", 1, 4), lag("z", 0, 5)},
			Unknown: 4, Beyond: 10,
		}
		reg := prometheus.NewRegistry()
		reg.MustRegister(newGroupMetrics(
			func() coordinator.Stats {
				return coordinator.Stats{Groups: map[coordinator.GroupKind]int{{Protocol: "consumer", State: "Assigning"}: 2, {Protocol: "classic", State: "Empty"}: 1}}
			},
			func(ctx context.Context) broker.GroupLags {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Error("a scrape may wait for ever")
				}
				asked++
				return lags
			}))
		want := `varve_group_lag_partitions{lag="beyond"} 12
varve_group_lag_partitions{lag="shown"} 5
varve_group_lag_partitions{lag="unknown"} 4
varve_group_lag_records{group="a",partition="0",topic="t"} 7
varve_group_lag_records{group="a",partition="1",topic="t"} 0
varve_group_lag_records{group="x�",partition="0",topic="t"} 1
varve_group_lag_records{group="x�",partition="1",topic="t"} 2
varve_group_lag_records{group="z",partition="0",topic="t"} 5
varve_groups{protocol="classic",state="CompletingRebalance"} 0
varve_groups{protocol="classic",state="Empty"} 1
varve_groups{protocol="classic",state="PreparingRebalance"} 0
varve_groups{protocol="classic",state="Stable"} 0
varve_groups{protocol="consumer",state="Assigning"} 2
varve_groups{protocol="consumer",state="Empty"} 0
varve_groups{protocol="consumer",state="Reconciling"} 0
varve_groups{protocol="consumer",state="Stable"} 0
`
		w := httptest.NewRecorder()
		promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if got := help.ReplaceAllString(w.Body.String(), ""); w.Code != http.StatusOK || got != want {
			t.Errorf("%d\n%s\nwant\n%s", w.Code, got, want)
		}
		// Who scrapes all the time does not make the coordinator look all the time.
		for range 5 {
			if _, err := reg.Gather(); err != nil {
				t.Error(err)
			}
		}
		if asked != 1 {
			t.Errorf("lags were looked up %d times within a second", asked)
		}
		time.Sleep(lagEvery)
		if _, err := reg.Gather(); err != nil || asked != 2 {
			t.Errorf("%v; lags were looked up %d times", err, asked)
		}
	})
}
