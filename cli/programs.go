package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/store"
)

// programs are what a server runs in the drills of schedules: the executables of a
// directory that its operator gave. No command comes from anybody else.
type programs struct {
	dir     string
	timeout time.Duration // how long one may run
	grace   time.Duration // and then has to end by itself

	served chan struct{} // closed when addr and tls are known
	addr   api.Addr      // of NBD
	tls    bool
}

var _ store.Driller = (*programs)(nil)

// drillGrace is how long a program has to end, at its timeout or at a shutdown. It is
// less than a shutdown takes by default.
const drillGrace = 3 * time.Second

// openPrograms looks at the directory.
func openPrograms(dir string, timeout time.Duration) (*programs, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	p := &programs{dir: dir, timeout: timeout, grace: drillGrace, served: make(chan struct{})}
	return p, p.checkDir()
}

func (p *programs) checkDir() error {
	info, err := os.Stat(p.dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no directory", p.dir)
	}
	return trusted(p.dir, info)
}

// trusted tells why somebody else may say what the server runs. Whoever an ACL lets
// write shows in the mode as the group.
func trusted(what string, info fs.FileInfo) error {
	owner := info.Sys().(*syscall.Stat_t).Uid
	switch {
	case owner != 0 && int(owner) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, and may only to root or the server's user: what is in it runs as that", what, owner)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %04o: whoever may write to it says what the server runs; chmod go-w it", what, info.Mode().Perm())
	}
	return nil
}

// serveAt says where the clones are served. Drills wait for it.
func (p *programs) serveAt(addr api.Addr, tls bool) {
	p.addr, p.tls = addr, tls
	close(p.served)
}

// Check implements store.Driller.
func (p *programs) Check(program string) error {
	err := p.checkDir()
	if err == nil {
		err = p.check(program)
	}
	if err != nil {
		return fmt.Errorf("%w: drill %q: %w", store.ErrInvalid, program, err)
	}
	return nil
}

func (p *programs) check(program string) error {
	path := filepath.Join(p.dir, program)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the server has no such program; %s", p.list())
	case err != nil:
		return err
	case !info.Mode().IsRegular(): // where a link leads, others may write
		return errors.New("it is no regular file")
	case unix.Access(path, unix.X_OK) != nil:
		return errors.New("it is not executable for the server; chmod +x it")
	}
	return trusted("it", info)
}

// mostListed bounds a line.
const mostListed = 20

// list says what there is.
func (p *programs) list() string {
	names, err := p.names()
	switch {
	case err != nil:
		return err.Error()
	case len(names) == 0:
		return "it has none"
	case len(names) > mostListed:
		names = append(names[:mostListed], "...")
	}
	return "it has " + strings.Join(names, ", ")
}

// Programs implements store.Driller.
func (p *programs) Programs() []string {
	names, err := p.names()
	if err != nil || p.checkDir() != nil {
		return nil
	}
	return names
}

// names are those of what can be run.
func (p *programs) names() (names []string, err error) {
	entries, err := os.ReadDir(p.dir)
	for _, e := range entries {
		if p.check(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// exitTimeout is the exit code of a program that took too long, as timeout(1) has it.
const exitTimeout = 124

// Drill implements store.Driller. The program has little of this one's environment,
// and nothing of it is left when it has ended, or its time has.
func (p *programs) Drill(ctx context.Context, program, snapshot, clone string) (store.Drill, error) {
	if err := p.Check(program); err != nil {
		return store.Drill{}, err
	}
	select {
	case <-ctx.Done():
		return store.Drill{}, ctx.Err()
	case <-p.served:
	}
	output := &lastBytes{most: drillOutputBytes}
	run := child{
		command: []string{filepath.Join(p.dir, program)}, stdout: output, stderr: output, dir: "/", alone: true,
		environment: append(inherited("PATH", "HOME", "LANG", "TMPDIR"), drillEnvironment(p.addr.NBDURI(clone, p.tls), clone, snapshot)...),
	}
	limited, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	signals := make(chan os.Signal, 2)
	stop := context.AfterFunc(limited, func() {
		signals <- syscall.SIGTERM
		time.AfterFunc(p.grace, func() { signals <- syscall.SIGKILL })
	})
	defer stop()
	begun := time.Now()
	code, failure := execute(&run, signals)
	result := store.Drill{Took: time.Since(begun), Command: program, ExitCode: code, Output: output.text()}
	switch {
	case failure != nil:
		return store.Drill{}, fmt.Errorf("drill %q: %w", program, failure)
	case ctx.Err() != nil:
		return store.Drill{}, ctx.Err()
	case run.signaled:
		result.ExitCode = exitTimeout
		result.Output = strings.TrimRight(result.Output, "\n") + fmt.Sprintf("\ntidemark: ended by force after %v (serve --drill-timeout)\n", p.timeout)
	}
	return result, nil
}

// inherited are variables that this program has.
func inherited(names ...string) (environment []string) {
	for _, name := range names {
		if value, has := os.LookupEnv(name); has {
			environment = append(environment, name+"="+value)
		}
	}
	return environment
}
