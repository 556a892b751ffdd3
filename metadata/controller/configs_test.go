package controller

import (
	"testing"

	"github.com/varve/varve/metadata/image"
)

// A value counts as it was validated, whatever the case of its letters and the blanks around it: leaders read it so, too.
func TestValuesAsValidated(t *testing.T) {
	for _, tc := range []struct {
		isr, unclean string
		wantISR      int
		want         bool
	}{
		{"3", "true", 3, true}, {" 3", " TRUE", 3, true}, {"3 ", "True ", 3, true}, {"\t3", "FALSE", 3, false}, {" 1 ", " false", 1, false},
	} {
		topic := &image.Topic{Config: map[string]string{minISRName: tc.isr, uncleanName: tc.unclean}}
		env := Env{MinISR: 2, Unclean: !tc.want}
		if got := minISR(image.Empty(), env, topic); got != tc.wantISR {
			t.Errorf("%s=%q is taken as %d", minISRName, tc.isr, got)
		}
		if got := isUnclean(image.Empty(), env, topic); got != tc.want {
			t.Errorf("%s=%q is taken as %v", uncleanName, tc.unclean, got)
		}
	}
}
