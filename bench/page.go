package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// page makes docs/benchmarks.md of what was measured, and of nothing else. plots
// are the files that can be shown.
func page(records []record, plots []string) string {
	p := &pager{results: results(records), plots: plots}
	// The parts come first: they find which goals were missed.
	for _, part := range []func(){
		p.throughput, p.large, p.light, p.tls, p.floor, p.after, p.stalls, p.chain, p.preserve, p.scale, p.memory, p.verify, p.commands,
	} {
		part()
	}
	body := p.text.String()
	p.text.Reset()
	p.head()
	return p.text.String() + body
}

// pager writes the page, and collects what was missed.
type pager struct {
	results
	plots  []string
	text   strings.Builder
	judged int
	missed []string
}

// results are records, looked at by what they are of.
type results []record

// where returns the records that a key names; empty fields name all.
func (rs results) where(section, name, over, peer string) (found results) {
	same := func(want, is string) bool { return want == "" || want == is }
	for _, r := range rs {
		if r.Failed == "" && same(section, r.Section) && same(name, r.Case) && same(over, r.Over) && same(peer, r.Peer) {
			found = append(found, r)
		}
	}
	return found
}

func (rs results) values(name string) (values []float64) {
	for _, r := range rs {
		if v, ok := r.Values[name]; ok {
			values = append(values, v)
		}
	}
	return values
}

func (rs results) median(name string) float64 { return median(rs.values(name)) }

// cases and peers are in the order in which they were measured first.
func (rs results) cases() []string { return unique(rs, func(r record) string { return r.Case }) }
func (rs results) peers() []string { return unique(rs, func(r record) string { return r.Peer }) }

func unique(rs results, of func(record) string) (names []string) {
	for _, r := range rs {
		if name := of(r); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// best is the peer that keeps data whose median is the largest, or the least.
func (rs results) best(value string, least bool) (name string, best float64) {
	best = math.NaN()
	for _, peer := range rs.peers() {
		v := rs.where("", "", "", peer).median(value)
		if peer != "tidemark" && keeps(peer) && !math.IsNaN(v) && (math.IsNaN(best) || least && v < best || !least && v > best) {
			name, best = peer, v
		}
	}
	return name, best
}

func keeps(name string) bool {
	return slices.ContainsFunc(peers, func(p peer) bool { return p.name == name && p.keeps })
}

func (p *pager) say(format string, args ...any) { fmt.Fprintf(&p.text, format+"\n", args...) }

// table writes one.
func (p *pager) table(head []string, rows [][]string) {
	p.say("\n| %s |\n|%s", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, row := range rows {
		p.say("| %s |", strings.Join(row, " | "))
	}
	p.say("")
}

func (p *pager) plot(name, about string) {
	if slices.Contains(p.plots, name) {
		p.say("![%s](benchmarks/%s)\n", about, name)
	}
}

// judge says whether a goal is met, and takes note if it is not.
func (p *pager) judge(what string, got, goal float64, atMost bool) string {
	if math.IsNaN(got) {
		return "not measured"
	}
	p.judged++
	if atMost && got <= goal || !atMost && got >= goal {
		return "met"
	}
	relation := "at least"
	if atMost {
		relation = "at most"
	}
	p.missed = append(p.missed, fmt.Sprintf("%s: %.3f, where the goal is %s %g", what, got, relation, goal))
	return "**not met**"
}

func (p *pager) head() {
	p.say("# Benchmarks\n\nMade by `make bench` from what it measured; [bench/README.md](../bench/README.md) says how. All servers ran on")
	p.say("one machine, each workload on one after the other, round by round: what counts is the ratios. A figure is the")
	p.say("median of the rounds, with the least and the largest where there is room.")
	p.measured()
	p.failures()
	p.say("## Goals\n\n%d of %d goals are met.", p.judged-len(p.missed), p.judged)
	if slices.ContainsFunc(p.results, func(r record) bool { return strings.HasPrefix(r.Case, "start ") && r.Failed != "" }) {
		p.say("Servers did not start (above): the best may be missing.")
	}
	if len(p.missed) > 0 {
		p.say("These are missed:\n")
	}
	for _, what := range p.missed {
		p.say("- %s", what)
	}
	p.say("")
}

// measured tells of the runs that the page is made of, each a column: what it measured,
// when and where.
func (p *pager) measured() {
	var runs []map[string]string
	for _, r := range p.results {
		if r.Section == "machine" {
			run := maps.Clone(r.Text)
			maps.DeleteFunc(run, func(name, _ string) bool { return strings.HasPrefix(name, "fio, ") }) // see commands
			runs = append(runs, run)
			continue
		}
		if len(runs) == 0 {
			continue
		}
		switch run := runs[len(runs)-1]; r.Section {
		case "commands", "failed":
		case "end":
			run["at the end"] = r.Text["date"] + ", load " + r.Text["load"]
		default:
			if !slices.Contains(strings.Fields(run[sectionsRow]), r.Section) {
				run[sectionsRow] = strings.TrimSpace(run[sectionsRow] + " " + r.Section)
			}
		}
	}
	named := map[string]bool{}
	for _, run := range runs {
		for name := range run {
			named[name] = true
		}
	}
	head, rows := []string{"measured"}, [][]string{}
	for range runs {
		head = append(head, "")
	}
	for _, name := range slices.Sorted(maps.Keys(named)) {
		row := []string{name}
		for _, run := range runs {
			row = append(row, run[name])
		}
		rows = append(rows, row)
	}
	p.table(head, rows)
}

// sectionsRow is the row of what a run measured.
const sectionsRow = "sections"

func (p *pager) failures() {
	var failed []string
	for _, r := range p.results {
		if r.Failed != "" {
			failed = append(failed, fmt.Sprintf("- %s: `%s`", r.Case, strings.Join(strings.Fields(r.Failed), " ")))
		}
	}
	if len(failed) > 0 {
		p.say("## What failed\n\nThese could not be measured, or did not do what they should:\n\n%s\n", strings.Join(failed, "\n"))
	}
}

func (p *pager) throughput() {
	if len(p.where("throughput", "", "unix", "")) > 0 {
		p.say("## Over unix sockets\n\n\"Best\" is the best of the peers that keep data; nbdkit's memory plugin keeps none, and is shown")
		p.say("as what the protocol allows. Those in the state that a snapshot leaves run the core workloads only.\n")
		p.plot("ratios.svg", "rates of Tidemark over those of the best peer")
		p.beside("throughput", "unix")
	}
	if len(p.where("throughput", "", "tcp", "")) > 0 {
		p.say("## Over TCP\n\nThe core workloads over loopback.")
		p.beside("throughput", "tcp")
	}
}

func (p *pager) large() {
	if len(p.where("large", "", "", "")) > 0 {
		p.say("## Over large writes\n\nThe workloads that write once more, on volumes that were filled in requests of 1 MiB, as qemu-img convert, a copy of files or")
		p.say("a restore fills them; all others here were filled in requests of 64 KiB. The kernel keeps in one large page what one call has")
		p.say("written, and ext4 looks at all of its blocks for each write of one. Tidemark writes in pieces.")
		p.beside("large", "unix")
	}
}

func (p *pager) light() {
	if len(p.where("light", "", "", "")) > 0 {
		p.say("## With a lighter client\n\nThe core workloads once more, with this repository's own client in place of fio. Where fio is busy all the time")
		p.say("it is the limit, for every server; this client takes less CPU a request.")
		p.beside("light", "unix")
	}
}

func (p *pager) tls() {
	if len(p.where("tls", "", "", "")) > 0 {
		p.say("## Over TLS\n\nThe load is this repository's own client, as fio knows no TLS. It encrypts on the same")
		p.say("cores as the server, which makes all servers look more alike than they are.")
		p.beside("tls", "tls")
	}
}

// beside compares rates and CPU, and then shows all figures of all servers.
func (p *pager) beside(section, over string) {
	var rates, cpu [][]string
	all := p.where(section, "", over, "")
	for _, name := range all.cases() {
		w, of := workloadNamed(name), all.where("", name, "", "")
		goal := w.goal
		if over != "unix" {
			goal = goalCore
		}
		how := name + " over " + over
		switch section {
		case "light":
			how += ", with a lighter client"
		case "large":
			how += ", over large writes"
		}
		unit, own := rateUnit(w), of.where("", "", "", "tidemark")
		rival, best := of.best(unit, false)
		ratio := own.median(unit) / best
		rates = append(rates, []string{name, rateText(unit, own.median(unit)), rateText(unit, best) + ", " + rival, number(ratio), ratioRange(of, unit, rival),
			number(goal), p.judge(how+", beside "+rival, ratio, goal, false)})
		thrifty, least := of.best("cpuMicros", true)
		ratio = own.median("cpuMicros") / least
		cpu = append(cpu, []string{name, number(own.median("cpuMicros")), number(least) + ", " + thrifty, number(ratio), number(goalCPU),
			p.judge("CPU of the server a request, "+how+", beside "+thrifty, ratio, goalCPU, true)})
	}
	p.table([]string{"rate", "Tidemark", "best", "ratio", "ratios of the rounds", "goal", ""}, rates)
	p.say("The server's CPU for a request, in µs, beside the peer that takes least:")
	p.table([]string{"CPU", "Tidemark", "least", "ratio", "goal", ""}, cpu)
	p.say("<details><summary>All figures</summary>\n\nLatencies in µs; of a 70/30 mix those of the reads. fio tells a flush's latency by itself: where there is")
	p.say("one, it is that alone.")
	for _, name := range all.cases() {
		p.everyServer(name, all.where("", name, "", ""))
	}
	p.say("</details>\n")
}

func (p *pager) everyServer(name string, of results) {
	unit := rateUnit(workloadNamed(name))
	var rows [][]string
	for _, peer := range of.peers() {
		own := of.where("", "", "", peer)
		row := []string{peer, rateText(unit, own.median(unit)), rateText(unit, slices.Min(own.values(unit))) + " - " + rateText(unit, slices.Max(own.values(unit)))}
		for _, value := range []string{"meanMicros", "p50Micros", "p99Micros", "p999Micros", "maxMicros", "cpuMicros"} {
			row = append(row, number(own.median(value)))
		}
		rows = append(rows, row)
	}
	p.table([]string{name, "rate", "least - largest", "mean", "p50", "p99", "p99.9", "max", "CPU"}, rows)
}

func rateUnit(w workload) string {
	if w.bytes {
		return "bytesPerSecond"
	}
	return "iops"
}

// ratioRange is the least and the largest ratio of a round to a rival's.
func ratioRange(of results, unit, rival string) string {
	var ratios []float64
	for _, own := range of.where("", "", "", "tidemark") {
		for _, other := range of.where("", "", "", rival) {
			if own.Round == other.Round {
				ratios = append(ratios, own.Values[unit]/other.Values[unit])
			}
		}
	}
	if rival == "" || len(ratios) == 0 {
		return "-"
	}
	return leastLargest(ratios)
}

func (p *pager) floor() {
	calls := p.where("floor", "system calls", "", "")
	if len(calls) == 0 {
		return
	}
	p.say("## What the machine takes\n\nOne thread's CPU for what no server can do without, for 4 KiB: the system call between page cache and memory at a")
	p.say("random place, and a message through a unix socket, 32 at a time. Beside it, all that Tidemark takes for a request at depth 32.")
	row := func(kind string, call, socket float64) []string {
		whole := p.where("throughput", "random "+kind+", depth 32", "unix", "tidemark").median("cpuMicros")
		return []string{kind, number(call), number(socket), number(call + socket), number(whole)}
	}
	rows := [][]string{
		row("read", calls.median("preadMicros"), calls.median("sendMicros")), row("write", calls.median("pwriteMicros"), calls.median("receiveMicros")),
	}
	if fresh := calls.median("pwriteNewMicros"); !math.IsNaN(fresh) {
		rows = append(rows, row("write to a new place", fresh, calls.median("receiveMicros")))
	}
	p.table([]string{"µs", "system call", "socket", "both", "Tidemark"}, rows)
	p.newPlaces(calls)
	if benchmarks := p.where("floor", "", "", ""); len(benchmarks) > len(calls) {
		p.say("Package nbd by itself, over a device that does nothing (`go test -bench Requests ./nbd`), client and server together:")
		rows = nil
		for _, r := range benchmarks {
			if r.Case != "system calls" {
				rows = append(rows, []string{r.Case, number(r.Values["nanos"]), number(r.Values["allocations"])})
			}
		}
		p.table([]string{"request", "ns", "allocations"}, rows)
	}
}

// newPlaces shows what a page and a block that are new cost.
func (p *pager) newPlaces(calls results) {
	var rows [][]string
	for _, of := range []struct{ kind, what string }{{"write", "write"}, {"flush", "write and fdatasync"}} {
		if there, fresh, ratios := bareLoop(calls, of.kind); len(ratios) > 0 {
			rows = append(rows, []string{of.what, number(there), number(fresh), number(median(ratios)), leastLargest(ratios)})
		}
	}
	if len(rows) == 0 {
		return
	}
	p.say("A bare loop of such writes, and the time that passes: in a file that is full and in the page cache, and in an empty one of")
	p.say("the same size, where each is a page new to the page cache and a block to allocate. Where a host takes back a virtual machine's")
	p.say("memory, a new page can cost several times one that is there. The ratio is of the rates.")
	p.table([]string{"µs", "there", "new", "ratio", "of the rounds"}, rows)
}

// bareLoop is what the machine takes for writes of a kind at places that are there
// and at new ones, and the ratios of the rates, a round each.
func bareLoop(calls results, kind string) (thereMicros, newMicros float64, ratios []float64) {
	for _, r := range calls {
		there, fresh := r.Values[kind+"ThereMicros"], r.Values[kind+"NewMicros"]
		if there > 0 && fresh > 0 {
			ratios = append(ratios, there/fresh)
		}
	}
	return calls.median(kind + "ThereMicros"), calls.median(kind + "NewMicros"), ratios
}

func leastLargest(values []float64) string {
	return number(slices.Min(values)) + " - " + number(slices.Max(values))
}

func (p *pager) after() {
	all := p.where("after", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## After a snapshot\n\nRequests a second, in the second before the first snapshot of a full volume and in that after it. Each round has")
	p.say("a new volume.")
	calls := p.where("floor", "system calls", "", "")
	if _, _, ratios := bareLoop(calls, "write"); len(ratios) > 0 {
		p.say("The bare loop (above), at places that are there and at new ones, is what the machine allows a store that keeps old blocks")
		p.say("where they lie; a request takes more than the loop does, so that a store can be nearer to 1.")
	}
	p.say("")
	p.plot("after-rate.svg", "writes a second around a snapshot")
	p.plot("after-latency.svg", "the worst latency around a snapshot")
	var rows [][]string
	for _, name := range all.cases() {
		goal, kind := goalAfterWrite, "write"
		if workloadNamed(name).flushes {
			goal, kind = goalAfterFlush, "flush"
		}
		of := all.where("", name, "", "")
		for _, peer := range of.peers() {
			own := of.where("", "", "", peer)
			ratios, judged := own.values("afterToBefore"), ""
			if peer == "tidemark" {
				judged = p.judge("after a preserve, "+name, median(ratios), goal, false)
			}
			rows = append(rows, []string{name, peer, number(own.median("before")), number(own.median("after")), number(median(ratios)),
				leastLargest(ratios), number(own.median("commandP50Millis")), number(goal), judged})
		}
		if there, fresh, ratios := bareLoop(calls, kind); len(ratios) > 0 {
			rows = append(rows, []string{name, "the bare loop", number(1e6 / there), number(1e6 / fresh), number(median(ratios)), leastLargest(ratios), "", "", ""})
		}
	}
	p.table([]string{"load", "server", "before", "after", "ratio", "of the rounds", "command, ms", "goal", ""}, rows)
}

func (p *pager) stalls() {
	all := p.where("stalls", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## Requests near a snapshot\n\nThe latency, in ms, of requests that ended within %v ms of a command, and of those apart. The control is no", window*1e3)
	p.say("command at all, at the same times: on a busy machine its ratios are not 1 either. The goal is for near/apart of")
	p.say("Tidemark over near/apart of the control. A snapshot whose work goes on after the command slows the requests apart too,")
	p.say("and makes that small: so the latencies and the rate themselves, over those of the run with the control, stand beside it.")
	p.say("Deletes, whose work is all of that kind, are judged by the latencies themselves; each command deletes %d snapshots where nothing else is said, of %d blocks.", deletesAtOnce, deletedBlocks)
	for _, name := range all.cases() {
		if gone := all.where("", name, "", "tidemark").median("imagesGone"); !math.IsNaN(gone) {
			p.say("Of the images that they leave, %.0f (the median) were folded and gone when that load ended (%s); the others later.", gone, name)
		}
	}
	p.say("All are told over a connection that stays open: Tidemark by its API, qemu-storage-daemon by QMP.")
	var rows, verdicts [][]string
	for _, name := range all.cases() {
		of := all.where("", name, "", "")
		for _, peer := range of.peers() {
			own := of.where("", "", "", peer)
			row := []string{name, peer, number(own.median("commands")), number(own.median("commandP50Millis")), number(own.median("iops"))}
			for _, value := range []string{"nearP999Millis", "nearMaxMillis", "apartP999Millis", "apartMaxMillis", "ratioP999", "ratioMax", "afterToBefore"} {
				row = append(row, number(own.median(value)))
			}
			rows = append(rows, row)
		}
		if own := of.where("", "", "", "tidemark"); len(own) > 0 {
			verdicts = append(verdicts, p.stallVerdict(name, own, of.where("", "", "", control)))
		}
	}
	p.table([]string{"Tidemark over the control", "near/apart p99.9", "near/apart max", "goal", "p99.9", "max", "near p99.9", "near max", "apart p99.9", "rate"}, verdicts)
	p.table([]string{"load", "command", "times", "takes, ms", "rate", "near p99.9", "near max", "apart p99.9", "apart max", "near/apart p99.9", "near/apart max", "rate after/before"}, rows)
}

func (p *pager) stallVerdict(name string, own, beside results) []string {
	goal := goalStall
	if strings.Contains(name, scrubLoad().name) || strings.Contains(name, crowdLoad().name) || strings.Contains(name, whileDeleted) {
		goal = goalBusyStall
	}
	over := func(value string) float64 { return own.median(value) / beside.median(value) }
	row := []string{name, number(over("ratioP999")), number(over("ratioMax")), number(goal)}
	if strings.Contains(name, whileDeleted) {
		row = append(row, p.judge("p99.9 near a delete over the control, "+name, over("nearP999Millis"), goal, true)+" (near)",
			p.judge("p99.9 apart from deletes over the control, "+name, over("apartP999Millis"), goal, true)+" (p99.9 apart)")
	} else {
		row = append(row, p.judge("near/apart p99.9 of a preserve over the control, "+name, over("ratioP999"), goal, true),
			p.judge("near/apart max of a preserve over the control, "+name, over("ratioMax"), goal, true))
	}
	for _, value := range []string{"nearP999Millis", "nearMaxMillis", "apartP999Millis", "iops"} {
		row = append(row, number(over(value)))
	}
	return row
}

func (p *pager) chain() {
	all := p.where("chain", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## Many snapshots\n\nRandom reads at depth 32 from a volume of which every block was written since its first snapshot: all in one image,")
	p.say("or evenly over the images of all its snapshots.")
	var rows [][]string
	for _, peer := range all.peers() {
		of := all.where("", "", "", peer)
		short := of.where("", of.cases()[0], "", "").median("iops")
		for _, length := range of.cases() {
			own, judged, goal := of.where("", length, "", ""), "", ""
			ratio := own.median("iops") / short
			if peer == "tidemark" && length != of.cases()[0] {
				judged, goal = p.judge("reads with "+length+" snapshots", ratio, goalChain, false), number(goalChain)
			}
			rows = append(rows, []string{peer, length, rateText("iops", own.median("iops")), number(own.median("cpuMicros")), number(ratio), goal, judged})
		}
	}
	p.table([]string{"server", "snapshots", "rate", "CPU, µs", "ratio", "goal", ""}, rows)
}

func (p *pager) preserve() {
	all := p.where("preserve", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## The time of a preserve\n\nAs the server tells it, in ms, one every %v, each volume with request scope; beside it what a 4 KiB write and", preserveEvery)
	p.say("sync of a file took on this disk just before the first of them, with the load running where there is one. The goals are")
	p.say("%v ms for half of them and %v ms for 99 of 100; of 100 or fewer, the p99 is the largest.", goalPreserveP50, goalPreserveP99)
	var rows [][]string
	for _, name := range all.cases() {
		own := all.where("", name, "", "")
		p50, p99 := own.median("p50Millis"), own.median("p99Millis")
		sync := "fsync"
		if strings.HasSuffix(name, underLoad) {
			sync = "loadedFsync"
		}
		rows = append(rows, []string{name, number(own.median("preserves")), number(p50), number(p99), number(own.median("maxMillis")),
			number(own.median(sync + "P50Millis")), number(own.median(sync + "P99Millis")),
			p.judge("p50 of a preserve in ms, "+name, p50, goalPreserveP50, true), p.judge("p99 of a preserve in ms, "+name, p99, goalPreserveP99, true)})
	}
	p.table([]string{"volumes", "preserves", "p50", "p99", "max", "sync p50", "p99", "p50", "p99"}, rows)
}

func (p *pager) scale() {
	all := p.where("scale", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## A large directory\n\n%d snapshots of a volume of 1 TiB, each with %d blocks written at random since the one before, and %d more volumes,", scaleSnapshots, scaleBlocks, scaleVolumes)
	p.say("one of them of 16 TiB, in one directory. A time is that of the whole command, the program's start included; the line of a command that does")
	p.say("nothing tells how long that is. Memory is the server's own (RssAnon).")
	p.say("A time until all is given back is without requests beside it. A snapshot is sealed when all of it was read for its checksums: a clone does not wait for that, as the one of a full volume shows; what a client left unflushed it does wait for.\n")
	p.values(all, scaleGoal)
}

// values lists what was measured, case by case, and against which goal, if goal says one.
func (p *pager) values(all results, goalOf func(name, value string) float64) {
	var rows [][]string
	for _, name := range all.cases() {
		own := all.where("", name, "", "")
		for _, value := range []string{"p50Millis", "maxMillis", "seconds", "MiB", "files", "perSecond"} {
			v, goal := own.median(value), goalOf(name, value)
			if math.IsNaN(v) {
				continue
			}
			judged, said := "", ""
			if goal > 0 {
				said, judged = number(goal), p.judge(name+", "+value, v, goal, true)
			}
			rows = append(rows, []string{name, value, number(v), said, judged})
		}
	}
	p.table([]string{"what", "unit", "value", "goal", ""}, rows)
}

func (p *pager) memory() {
	all := p.where("memory", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## Memory, at its most\n\nA volume of 1 TiB of which each of the %d million blocks of 4 KiB was written once, in random order, with %d snapshots, one", memoryBlocks>>20, memorySnapshots)
	p.say("after each thousandth; by zeros, which take no room on the disk, and in memory as much as data does. Memory is the server's own (RssAnon), with the")
	p.say("default of `--index-memory` (256 MiB): where it has no room for a block, its read asks the images one after the other. Commands as above.\n")
	p.values(all, func(name, value string) float64 {
		switch {
		case value == "MiB":
			return goalMemoryMiB
		case value == "p50Millis" && name != diffOfTwo:
			return goalCommandMillis
		}
		return 0
	})
}

func (p *pager) verify() {
	all := p.where("verify", "", "", "")
	if len(all) == 0 {
		return
	}
	p.say("## What was written is there\n\nAt the end a pattern is written over all of a volume, and read back; of Tidemark also from snapshots that were")
	p.say("taken before it was overwritten and in the middle of that. These held what they should:\n")
	for _, name := range all.cases() {
		p.say("- %s: %s", name, strings.Join(all.where("", name, "", "").peers(), "; "))
	}
	p.say("")
}

func (p *pager) commands() {
	p.say("## Commands\n\nDIR is a directory of each server's own, PKI one with certificates. Of fio:\n\n```")
	fio := map[string]bool{} // those of several runs may be alike
	for _, m := range p.where("machine", "", "", "") {
		for _, name := range slices.Sorted(maps.Keys(m.Text)) {
			if what, ok := strings.CutPrefix(name, "fio, "); ok && !fio[m.Text[name]] {
				fio[m.Text[name]] = true
				p.say("# %s\n%s", what, m.Text[name])
			}
		}
	}
	p.say("```\n")
	all := p.where("commands", "", "", "")
	for _, over := range unique(all, func(r record) string { return r.Over }) {
		p.say("Servers, %s:\n\n```", over)
		var shown []string
		for _, r := range all.where("", "", over, "") {
			if text := r.Text["commands"]; !slices.Contains(shown, text) {
				shown = append(shown, text)
				p.say("# %s\n%s", r.Peer, text)
			}
		}
		p.say("```\n")
	}
}

func rateText(unit string, v float64) string {
	if unit == "bytesPerSecond" {
		return number(v/1e9) + " GB/s"
	}
	return number(v)
}

// number has three digits, or all that are before the point; what is none is a dash.
func number(v float64) string {
	switch size := math.Abs(v); {
	case math.IsInf(v, 0) || math.IsNaN(v):
		return "-"
	case size >= 100_000:
		return fmt.Sprintf("%.0fk", v/1e3)
	case size >= 10_000:
		return fmt.Sprintf("%.1fk", v/1e3)
	case size >= 100:
		return fmt.Sprintf("%.0f", v)
	case size >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
