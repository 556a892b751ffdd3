package child

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Varve is a broker in a process of its own.
type Varve struct {
	*Process
	Addr  string // of Kafka's protocol
	Admin string // URL of metrics and health
}

// StartVarve runs `varve dev` with its data in dir. Settings are name=value;
// later ones win. What is in dir already is opened again.
func StartVarve(ctx context.Context, binary, dir string, settings ...string) (*Varve, error) {
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	admin, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	return StartVarveAt(ctx, binary, dir, addr, admin, settings...)
}

// StartVarveAt is StartVarve at given addresses, as a restart needs them.
func StartVarveAt(ctx context.Context, binary, dir, addr, admin string, settings ...string) (*Varve, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	args := append([]string{"dev", "--data-dir", filepath.Join(dir, "data")},
		SetFlags(append([]string{"listeners=PLAINTEXT://" + addr, "admin.listener=" + admin, "group.initial.rebalance.delay.ms=0"}, settings...))...)
	v := &Varve{Addr: addr, Admin: "http://" + admin}
	p, err := Start(ctx, &Process{Name: "varve dev", Log: filepath.Join(dir, "varve.log")}, exec.Command(binary, args...), func() error {
		if err := AnswersOK(v.Admin + "/readyz"); err != nil {
			return err
		}
		return Dialled(addr)
	})
	v.Process = p
	return v, err
}

// SetFlags are the --set arguments for settings as name=value; of several with one name, which a broker refuses, the last.
func SetFlags(settings []string) (args []string) {
	for i, s := range settings {
		name, _, _ := strings.Cut(s, "=")
		again := func(t string) bool { return strings.HasPrefix(t, name+"=") }
		if !slices.ContainsFunc(settings[i+1:], again) {
			args = append(args, "--set", s)
		}
	}
	return args
}

// Credentials of a MinIO server that StartMinIO starts.
const (
	MinIOUser     = "varve-child"
	MinIOPassword = "varve-child-secret"
)

// StartMinIO runs a MinIO server at addr with its objects in dir/data.
func StartMinIO(ctx context.Context, binary, dir, addr string) (*Process, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return Start(ctx, &Process{Name: "MinIO", Log: filepath.Join(dir, "minio.log")}, MinIOCommand(binary, dir, addr), func() error {
		return AnswersOK("http://" + addr + MinIOHealthPath)
	})
}

// MinIOHealthPath answers 200 once a MinIO server serves.
const MinIOHealthPath = "/minio/health/live"

// MinIOCommand is a MinIO server at addr with its objects in dir/data.
func MinIOCommand(binary, dir, addr string) *exec.Cmd {
	cmd := exec.Command(binary, "server", "--quiet", "--address", addr, filepath.Join(dir, "data"))
	cmd.Env = append(os.Environ(), "MINIO_ROOT_USER="+MinIOUser, "MINIO_ROOT_PASSWORD="+MinIOPassword, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1")
	return cmd
}

// WriteCredentials writes the file that Varve takes MinIO's credentials from.
func WriteCredentials(file string) error {
	return os.WriteFile(file, []byte(MinIOUser+"\n"+MinIOPassword+"\n"), 0o600)
}

// AnswersOK is an answer for Start: a GET of url is answered with 200.
func AnswersOK(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
