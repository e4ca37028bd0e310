package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

var (
	ours   = color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
	theirs = color.RGBA{R: 0xd6, G: 0x27, B: 0x28, A: 0xff}
)

// plotAll draws what there is to draw, and returns the names of the files.
func plotAll(dir string, records []record) (names []string, err error) {
	for _, d := range []struct {
		name          string
		plot          func(results) (*plot.Plot, error)
		width, height vg.Length
	}{
		{"ratios.svg", plotRatios, 22 * vg.Centimeter, 12 * vg.Centimeter},
		{"after-rate.svg", plotRates, 20 * vg.Centimeter, 9 * vg.Centimeter},
		{"after-latency.svg", plotLatencies, 20 * vg.Centimeter, 9 * vg.Centimeter},
	} {
		p, err := d.plot(results(records))
		if err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
		if p == nil {
			continue // nothing of it was measured
		}
		if err := p.Save(d.width, d.height, filepath.Join(dir, d.name)); err != nil {
			return nil, fmt.Errorf("plot %s: %w", d.name, err)
		}
		names = append(names, d.name)
	}
	return names, nil
}

// plotRatios has a bar for each workload over unix sockets, and its goal as a dot.
func plotRatios(rs results) (*plot.Plot, error) {
	all := rs.where("throughput", "", "unix", "")
	var names []string
	var bars plotter.Values
	var goals plotter.XYs
	for _, name := range all.cases() {
		w, of := workloadNamed(name), all.where("", name, "", "")
		_, best := of.best(rateUnit(w), false)
		if ratio := of.where("", "", "", "tidemark").median(rateUnit(w)) / best; !math.IsNaN(ratio) {
			goals = append(goals, plotter.XY{X: w.goal, Y: float64(len(names))})
			names, bars = append(names, name), append(bars, ratio)
		}
	}
	if len(names) == 0 {
		return nil, nil
	}
	p := plot.New()
	p.Title.Text = "Rate of Tidemark over that of the best peer that keeps data; dots are the goals"
	chart, err := plotter.NewBarChart(bars, 14)
	if err != nil {
		return nil, err
	}
	dots, err := plotter.NewScatter(goals)
	if err != nil {
		return nil, err
	}
	chart.Horizontal, chart.Color, chart.LineStyle.Width = true, ours, 0
	dots.Color, dots.Radius, dots.Shape = theirs, 4, draw.CircleGlyph{}
	p.Add(plotter.NewGrid(), chart, dots)
	p.NominalY(names...)
	p.X.Min, p.X.Max = 0, p.X.Max*1.1
	return p, nil
}

func plotRates(rs results) (*plot.Plot, error) {
	return plotAround(rs, "writes a second", func(m moment) float64 { return m.Requests * 1000 / momentMillis })
}

func plotLatencies(rs results) (*plot.Plot, error) {
	return plotAround(rs, "worst latency, ms", func(m moment) float64 { return m.WorstMilli })
}

// plotAround has a line for each server, of its first round at depth 32.
func plotAround(rs results, what string, of func(moment) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = "Around the first snapshot of a full volume: " + write32.name
	p.X.Label.Text, p.Y.Label.Text = "ms since the command", what
	p.Add(plotter.NewGrid())
	p.Legend.Top = true
	p.X.Tick.Marker = plot.TickerFunc(everyHalfSecond)
	all := rs.where("after", write32.name, "", "")
	for i, peer := range all.peers() {
		var points plotter.XYs
		for _, m := range all.where("", "", "", peer)[0].Series {
			points = append(points, plotter.XY{X: m.Millis, Y: of(m)})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		line.Color, line.Width = []color.Color{ours, theirs}[i%2], 1.5
		p.Add(line)
		p.Legend.Add(peer, line)
	}
	if len(all) == 0 {
		return nil, nil
	}
	p.Y.Min, p.Y.Max = 0, p.Y.Max*1.3 // room for the legend
	return p, nil
}

func everyHalfSecond(from, to float64) (ticks []plot.Tick) {
	for at := math.Ceil(from/500) * 500; at <= to; at += 500 {
		ticks = append(ticks, plot.Tick{Value: at, Label: fmt.Sprintf("%.0f", at)})
	}
	return ticks
}
