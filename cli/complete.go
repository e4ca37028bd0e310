package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/tidemark/tidemark/api"
	"github.com/tidemark/tidemark/api/tidemarkv1"
)

// completionWait is how long the shell's user waits for names at most.
const completionWait = time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completeVolumes completes up to limit arguments with names of volumes.
func (a *app) completeVolumes(limit int) completer {
	return a.complete(limit, listVolumeNames)
}

// completeSnapshots completes one argument with VOLUME@SNAPSHOT.
func (a *app) completeSnapshots() completer {
	return a.complete(1, listSnapshotNames)
}

func (a *app) complete(limit int, names ...func(context.Context, api.Client) []string) completer {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		server, err := a.server()
		if err != nil || len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), completionWait)
		defer cancel()
		var all []string
		for _, list := range names {
			all = append(all, list(ctx, server)...)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// The names below are a convenience: without an answer there are none.

func listVolumeNames(ctx context.Context, server api.Client) (names []string) {
	r, err := server.ListVolumes(ctx, &tidemarkv1.ListVolumesRequest{})
	if err != nil {
		return nil
	}
	for _, v := range r.GetVolumes() {
		names = append(names, v.GetName())
	}
	return names
}

func listSnapshotNames(ctx context.Context, server api.Client) (names []string) {
	r, err := server.ListSnapshots(ctx, &tidemarkv1.ListSnapshotsRequest{})
	if err != nil {
		return nil
	}
	for _, s := range r.GetSnapshots() {
		names = append(names, fullName(s))
	}
	return names
}

// listTargets lists what a schedule can be set for.
func listTargets(ctx context.Context, server api.Client) []string {
	groups := each(listGroupNames(ctx, server), func(name string) string { return groupTarget + name })
	return append(listVolumeNames(ctx, server), groups...)
}

func listScheduleTargets(ctx context.Context, server api.Client) (targets []string) {
	r, err := server.ListSchedules(ctx, &tidemarkv1.ListSchedulesRequest{})
	if err != nil {
		return nil
	}
	for _, x := range r.GetSchedules() {
		targets = append(targets, x.GetTarget())
	}
	return targets
}

func listDrills(ctx context.Context, server api.Client) []string {
	r, err := server.GetServerInfo(ctx, &tidemarkv1.GetServerInfoRequest{})
	if err != nil {
		return nil
	}
	return r.GetDrills()
}

func listTokens(ctx context.Context, server api.Client) (tokens []string) {
	r, err := server.ListProcesses(ctx, &tidemarkv1.ListProcessesRequest{})
	if err != nil {
		return nil
	}
	for _, p := range r.GetProcesses() {
		if p.GetScope() == tidemarkv1.Scope_SCOPE_EXPLICIT {
			tokens = append(tokens, p.GetToken())
		}
	}
	return tokens
}

// completeWords completes a flag with fixed words.
func completeWords(c *cobra.Command, flag string, words []string) {
	programmed(c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)))
}

// completeFlag completes a flag with names.
func (a *app) completeFlag(c *cobra.Command, flag string, names func(context.Context, api.Client) []string) {
	programmed(c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, to string) ([]string, cobra.ShellCompDirective) {
		return a.complete(1, names)(c, nil, to)
	}))
}

// mustHave makes a flag required.
func mustHave(c *cobra.Command, flag string) { programmed(c.MarkFlagRequired(flag)) }

// programmed stops on an error that only a wrong flag name in this package can
// cause.
func programmed(err error) {
	if err != nil {
		panic(err)
	}
}
