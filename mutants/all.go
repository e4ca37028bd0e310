package main

// all are the mutants, by what they break: lock, order, journal, seal, epoch,
// and what was built on them.
var all = []mutant{
	// The lock (R5).
	{
		name: "a read takes no lock", file: "volume/read.go",
		old: "if !v.lock(rq, first, count, blocklock.Shared, wait) {",
		new: "if rq.held = (blocklock.Held{}); false {",
		and: []edit{{"	defer v.locks.Unlock(&rq.held)\n	if w.givesUp", "	if w.givesUp"}},
	},
	{
		name: "a write takes a shared lock", file: "volume/write.go",
		old: "v.lock(rq, first, count, blocklock.Exclusive, wait)",
		new: "v.lock(rq, first, count, blocklock.Shared, wait)",
	},
	{
		name: "a write lets its lock go before the transfer", file: "volume/write.go",
		old: "	defer v.locks.Unlock(&rq.held)\n	if err := v.Failed()",
		new: "	v.locks.Unlock(&rq.held)\n	if err := v.Failed()",
	},
	{
		name: "the list of newer images is read before the lock is held", file: "volume/write.go",
		old: "	if beforeLock != nil {",
		new: "	early := (*v.chain.Load()).newer(k)\n	if beforeLock != nil {",
		and: []edit{{"	newer := (*v.chain.Load()).newer(k) // read after the lock is held, not at begin (R1)", "	newer := early"},
			{"	return false, v.writeLocked(rq, k, ch, wait)", "	return false, v.writeLocked(rq, k, ch, wait, early)"},
			{"wait bool) error {\n	newer := early", "wait bool, early chain) error {\n	newer := early"}},
	},
	// What a write does to the newer images (R1, R3, R4).
	{
		name: "entries of newer tables stay (R1)", file: "volume/write.go",
		old: "		if !j.all(body, lookup.Absent) {", new: "		if false {",
	},
	{
		name: "only the newest entry is deleted (R1)", file: "volume/write.go",
		old: "	for _, j := range newer {\n		if !j.all", new: "	for _, j := range newer[max(0, len(newer)-1):] {\n		if !j.all",
	},
	{
		name: "part of a block is not applied to newer images (R3)", file: "volume/write.go",
		old: "	for _, j := range newer {\n		bytes, at :=", new: "	for _, j := range newer[:0] {\n		bytes, at :=",
	},
	{
		name: "a trim leaves the block absent, not zero (R4)", file: "volume/write.go",
		old: "		rq.add(k, body.first, body.count, s)", new: "		rq.add(k, body.first, body.count, lookup.Data&s)",
	},
	{
		name: "the index does not follow the tables", file: "volume/write.go",
		old: "		v.reindex(body, parts, k, newer, ch.state)\n", new: "		_ = v.reindex\n",
	},
	{
		name: "a read through an older VLUN sees a newer image (R2)", file: "volume/read.go",
		old: "j != nil && j.order <= k.order {", new: "j != nil {",
	},
	// The epoch and what is bound to it (R6, R7).
	{
		name: "no second look at the epoch after the count", file: "volume/bind.go",
		old: "if Epoch(e.epoch.Load()) != epoch {", new: "if false {",
	},
	{
		name: "no second look at the bound of a process", file: "volume/bind.go",
		old: "if Epoch(w.bound.epoch.Load()) != bound {", new: "if false {",
	},
	{
		name: "no second look at the end of a process", file: "volume/bind.go",
		old: "if w.process.ended.Load() {\n				w.leave(k)", new: "if false {\n				w.leave(k)",
	},
	{
		name: "the epoch is raised before the next VLUNs are published", file: "volume/preserve.go",
		old: "	epoch := Epoch(e.epoch.Load()) + 1\n", new: "	epoch := Epoch(e.epoch.Add(1))\n",
	},
	{
		name: "the drain does not wait for requests in flight", file: "volume/bind.go",
		old: "	for i := range k.inflight {\n		k.awaitRequests(i)\n	}\n", new: "	_ = k.awaitRequests\n",
	},
	{
		name: "the drain does not wait for processes", file: "volume/bind.go",
		old: "	for k.bound() > 0 {\n", new: "	for k.bound() < 0 {\n",
	},
	{
		name: "a VLUN drains before the older ones (R8)", file: "volume/bind.go",
		old: "	if older != nil {", new: "	if older != nil && older.slot == 0 {",
	},
	{
		name: "abort moves processes to the live VLUN, not to the next", file: "volume/preserve.go",
		old: "	next := k.next()\n	for", new: "	next := k.volume.tip()\n	for",
	},
	{
		name: "a VLUN's size is not fixed at its cut", file: "volume/preserve.go",
		old: "epoch, old.SizeBytes())", new: "epoch, 4096)",
	},
	// The order in which things become durable (R9).
	{
		name: "the table changes before the data is stored", file: "volume/write.go",
		old: "	if err := k.store(ch, body); err != nil {\n		return err\n	}\n", new: "	defer func() { _ = k.store(ch, body) }()\n",
	},
	{
		name: "a commit syncs no image", file: "volume/flush.go",
		old: "	k.unsynced.begin()\n	err := k.Image().Sync()\n", new: "	k.unsynced.begin()\n	err := error(nil)\n",
	},
	{
		name: "a commit syncs the tip only", file: "volume/flush.go",
		old: "		k := chain[i]\n", new: "		k := chain[i]\n		if i < len(chain)-1 {\n			break\n		}\n",
	},
	{
		name: "the log is committed before the images are synced", file: "volume/flush.go",
		old: "	end := v.log.End()\n", new: "	end := v.log.End()\n	_ = v.log.Commit(end, journal.Basis{})\n",
	},
	{
		name: "a flush is covered by a commit that began before it", file: "volume/flush.go",
		old: "	c.depart()\n	b.err = errUnfinished\n	v := c.volume\n	err := v.commit(false)\n", new: "	v := c.volume\n	err := v.commit(false)\n	c.depart()\n",
	},
	{
		name: "only one of a batch learns that the commit failed", file: "volume/flush.go",
		old: "	err := b.err\n	if b.size--", new: "	err := b.err\n	b.err = nil\n	if b.size--",
		packages: "./volume", tests: "Flush",
	},
	{
		name: "a failed sync is not final: the volume goes on", file: "volume/flush.go",
		old: "	return k.syncFailed(err)\n}\n\n// commitLog", new: "	return err\n}\n\n// commitLog",
	},
	{
		name: "after a failed sync what it was to write is still served", file: "volume/unsynced.go",
		old: "		u.before.Store(u.current.Load()) // first: no moment at which a mark is in neither\n", new: "",
	},
	{
		name: "the log is not told of a failed sync", file: "volume/volume.go",
		old: "if marked := v.log.MarkFailed(); marked", new: "if marked := error(nil); marked",
		packages: "./volume ./store", tests: "Sync|Fault|Fail",
	},
	// The journal.
	{
		name: "a commit does not sync the journal", file: "journal/journal.go",
		old: "	if err := s.file.Sync(); err != nil {\n		return j.fail(s, err)\n	}\n	// That", new: "	// That",
	},
	{
		name: "the frames of the journal are not chained", file: "journal/segment.go",
		old: "f.prev != r.prev {", new: "f.prev != r.prev && false {",
	},
	{
		name: "the CRC of a frame is not compared", file: "journal/segment.go",
		old: "	if crc != frameCRC(b, salt) {", new: "	if crc != frameCRC(b, salt) && false {",
	},
	{
		name: "after a power cut changes count that no commit covers (J2)", file: "journal/recover.go",
		old: "	if h.whole() {\n		return h.last().after", new: "	if true {\n		return h.last().after",
	},
	{
		name: "after the server's death only committed changes count (J1)", file: "journal/recover.go",
		old: "	if h.whole() {\n		return h.last().after", new: "	if false {\n		return h.last().after",
	},
	{
		name: "recovery commits a tail without syncing its images", file: "journal/recover.go",
		old: "	switch err := o.SyncImage(id); {", new: "	switch err := error(nil); {",
		packages: "./journal ./store", tests: "Crash|PowerCut|Kill|Death|Fault|Fail|Sync",
	},
	{
		name: "a life in which a sync failed is recovered as a whole one (J8)", file: "journal/recover.go",
		old: "return h.sameBoot && !h.failed }", new: "return h.sameBoot }",
	},
	{
		name: "the witness of the last sync is not looked at (J7)", file: "journal/journal.go",
		old: "	_ = j.witness.saw(p)\n", new: "",
	},
	{
		name: "what commits hold is not stored after a power cut (J10)", file: "journal/recover.go",
		old: "	if err := h.storeBlocks(&o, r.Tables); err != nil {\n		return nil, nil, err\n	}\n", new: "",
	},
	{
		name: "what an image was synced over is stored all the same (J10)", file: "journal/recover.go",
		old: "		delete(h.blocks, id)\n", new: "		_ = id\n",
	},
	{
		name: "a segment that holds data is folded (J10)", file: "journal/checkpoint.go",
		old: " || s.number >= first", new: "",
	},
	{
		name: "recovery after the server's death lets go of what is held (J10)", file: "journal/recover.go",
		old: "last.after == h.committed && len(h.blocks) == 0", new: "last.after == h.committed",
	},
	{
		name: "recovery syncs images and does not say so in its commit (J10)", file: "journal/recover.go",
		old: "Basis{Synced: slices.Sorted(maps.Keys(h.blocks))}", new: "Basis{}",
	},
	{
		name: "data of a client can be taken for frames of the journal (J10)", file: "journal/journal.go",
		old: "salt: newSalt()", new: "salt: 0 * newSalt()",
	},
	{
		name: "under the same boot ID what was written since is stored over (J10)", file: "journal/recover.go",
		old: "		if err := h.leaveOverwritten(); err != nil {\n			return err\n		}\n", new: "",
	},
	{
		name: "an overwrite of what the journal has is not told (J10)", file: "volume/write.go",
		old: " || k.stored.any(body) {", new: " {",
		packages: "./volume", tests: "Flush",
	},
	{
		name: "a flush that syncs an image does not tell the journal, which has older data (J10)", file: "volume/flush.go",
		old: "		c.basis.Synced, c.told = append(c.basis.Synced, k.id), append(c.told, k)\n", new: "",
		packages: "./volume ./store", tests: "Order|Flush|Crash|Cut|Settle|Tells|Leaves",
	},
	{
		name: "what a failed flush took is forgotten (J10)", file: "volume/flush.go",
		old: "		k.fresh.addAll()\n	}\n}\n", new: "	}\n}\n",
		packages: "./volume", tests: "Flush|Sync",
	},
	{
		name: "a seal leaves data of the image in the journal (J10)", file: "volume/flush.go",
		old: "k.cover(false, true)", new: "k.cover(false, false)",
		packages: "./volume ./store", tests: "Seal|Settle",
	},
	{
		name: "what is staged is taken for published (J11)", file: "journal/journal.go",
		old: "		if err := j.cur.write(nil); err != nil && j.err == nil {\n			return err\n		}\n", new: "",
	},
	{
		name: "what could not be published is forgotten (J11)", file: "journal/journal.go",
		old: "		if _, err := s.file.WriteAt(whole, at); err != nil {\n", new: "		if _, err := s.file.WriteAt(whole, at); err != nil {\n			s.staged = s.staged[:0]\n",
	},
	{
		name: "replies are sent before what they tell is published (J11)", file: "nbd/replies.go",
		old: "	if err := o.device.Publish(); err != nil && !o.broken {", new: "	if err := error(nil); err != nil && !o.broken {",
		packages: "./nbd", tests: "Repl",
	},
	{
		name: "what a rollback that was cut short has kept stays", file: "store/store.go",
		old: "	s.dropPassing()\n", new: "",
		packages: "./store", tests: "Rollback",
	},
	{
		name: "a rollback that is done loses what it keeps at the next open", file: "store/clone.go",
		old: "				if err := s.keepLocked(tx, x.past, x.keeps); err != nil {", new: "				if err := s.keepLocked(tx, x.past, nil); err != nil {",
		packages: "./store", tests: "Rollback",
	},
	{
		name: "a read tells what a kill takes (J11)", file: "volume/read.go",
		old: "	if unpublished := w.Publish(); unpublished != nil {", new: "	if unpublished := error(nil); unpublished != nil {",
		packages: "./store", tests: "Kill",
	},
	{
		name: "what drained while the journal rested counts under any boot ID (J9)", file: "journal/recover.go",
		old: "h.marks.boot == h.boot && ", new: "",
	},
	{
		name: "a mark is kept in memory only while the journal rests (J9)", file: "journal/journal.go",
		old: "	if err := j.witness.rest(j.boot, slices.Compact(drained)); err != nil {", new: "	if err := error(nil); err != nil {",
	},
	{
		name: "what drained while the journal rested counts though a sync failed (J9)", file: "journal/recover.go",
		old: "h.clean && !h.failed && h.marks", new: "h.clean && h.marks",
	},
	// Seal, sums, recovery of snapshots (I4, R8).
	{
		name: "a snapshot is sealed before the older one (R8)", file: "store/seal.go",
		old: "	if !inOrder(k) {", new: "	if false {",
	},
	{
		name: "a seal does not commit the table changes that it rests on", file: "store/seal.go",
		old: "	if err := k.SyncForSeal(); err != nil {\n		return err\n	}\n", new: "",
	},
	{
		name: "a seal does not know that a late write reached into a newer image", file: "volume/write.go",
		old: "		k.reached.Store(true)\n", new: "",
		packages: "./volume ./store", tests: "Seal|PowerCut",
	},
	{
		name: "a seal does not know that a late write stored bytes in a newer image", file: "volume/write.go",
		old: "		k.reach()\n		_, err := j.Image()", new: "		_, err := j.Image()",
		packages: "./volume ./store", tests: "Seal|PowerCut",
	},
	{
		name: "a seal rests on what an earlier life of the server left unsynced", file: "volume/engine.go",
		old: "			chain[i].reached.Store(unsealed) // nobody knows what an earlier life wrote\n", new: "",
		packages: "./store", tests: "PowerCut",
	},
	{
		name: "the log is used from its beginning while frames are pending", file: "catalog/log.go",
		old: "	if l.applied == l.drafted { // L2", new: "	if true {",
		packages: "./catalog",
	},
	{
		name: "an append is not synced", file: "catalog/log.go",
		old: "		err = l.file.Sync()\n	}\n	l.at", new: "	}\n	l.at",
		packages: "./catalog",
	},
	{
		name: "a frame lies in the log once", file: "catalog/log.go",
		old: "	return append(once, once...), nil", new: "	return once, nil",
		packages: "./catalog",
	},
	{
		name: "an update leaves out what is pending, and takes it for committed", file: "catalog/tx.go",
		old: "	for _, f := range l.pending {", new: "	for _, f := range l.pending[:0] {",
		packages: "./catalog",
	},
	{
		name: "what an open finds in the log is not synced", file: "catalog/log.go",
		old: "		return l.file.Sync() // Catalog, 5", new: "		return nil",
		packages: "./catalog",
	},
	{
		name: "a read of a sealed block is not compared with its sum", file: "image/sealed/sealed.go",
		old: "!= sums.at(i) {", new: "!= sums.at(i) && false {",
		packages: "./image/sealed ./store", tests: "Rot|Flip|Sum|Bad|Read|Corrupt",
	},
	{
		name: "a page of sums is not bound to its image and place", file: "image/sealed/page.go",
		old: "crc32.Update(crc32.Checksum(seed[:], castagnoli), castagnoli, p[:crcAt])", new: "crc32.Checksum(p[:crcAt], castagnoli)",
	},
	{
		name: "the hash of a snapshot leaves out what its image replaces", file: "image/sealed/chain.go",
		old: "			if err := older.each(first, n, &room, h.Remove); err != nil {", new: "			if err := older[:0].each(first, n, &room, h.Remove); err != nil {",
		packages: "./image/sealed ./store", tests: "Hash|Verify|Check|Rot|Flip",
	},
	{
		name: "the directory of new image files is not synced", file: "store/spares.go",
		old: "		return s.fs.SyncDir(imagesDir(s.dir))\n", new: "		return nil\n",
		packages: "./store", tests: "PowerCut|Crash",
	},
	{
		name: "an unsealed snapshot is not marked interrupted after a crash", file: "store/recover.go",
		old: "l.Snapshot.State == volume.Draining.String() && !drained[l.Image] {", new: "l.Snapshot.State == \"\" {",
		packages: "./store", tests: "Interrupt|Crash|PowerCut|Model|Recover",
	},
	// Clone, delete, punch, rollback.
	{
		name: "punch: a block is dead if one chain of many covers it", file: "store/punch.go",
		old: "		dead, asked = covered, append(asked, c.cover[len(c.cover)-1].ImageID())\n", new: "		dead = covered\n		break\n",
		packages: "./store", tests: "AtRandom|ALife|DeletedSnapshot", flags: "-life.seeds 30",
	},
	{
		name: "punch: no seal goes between", file: "store/share.go",
		old: "		x.idle()\n", new: "",
		packages: "./store", tests: "BetweenTwoPieces",
	},
	{
		name: "punch: what was deleted before its seal stays", file: "store/seal.go",
		old: "rec.due = d.snapshots[k] == nil || d.founded[k]", new: "rec.due = d.founded[k]",
		packages: "./store", tests: "BeforeItsSeal",
	},
	{
		name: "punch: only what was just found dead goes, whatever was cut short before", file: "store/punch.go",
		old: "all: was.unsure}", new: "all: false}",
		packages: "./store", tests: "Fold|Crash", flags: "-life.crashes 12",
	},
	{
		name: "a deleted volume protected nothing", file: "store/store.go",
		old: "		if shared[i] && shown[i] >= 0", new: "		if false && shown[i] >= 0",
		packages: "./store", tests: "AtRandomHold", flags: "-life.seeds 40",
	},
	{
		name: "punch: what could not be recorded counts as recorded", file: "store/marking.go",
		old: "		m.undo()\n", new: "",
		packages: "./store", tests: "IsNotRecorded",
	},
	{
		name: "a preserve that is given up gives nothing back", file: "store/preserve.go",
		old: "	s.sealer.punch(due...)\n", new: "	_ = due\n",
		packages: "./store", tests: "IsGivenUpHas",
	},
	{
		name: "a rollback that fails leaves its snapshot", file: "store/rollback.go",
		old: "s.unkeep(report.Kept)\n", new: "s.unkeep(report.Kept[:0])\n",
		packages: "./store", tests: "RollbackThatFails",
	},
	{
		name: "what a rollback discards is discarded after it", file: "store/rollback.go",
		old: "		grafts[i].discard = named[0].vlun\n", new: "		_ = i\n		defer s.nameless(holder{g.past, named[0].vlun})\n",
		packages: "./store", tests: "RollbackThatDiscards",
	},
	{
		name: "a past without snapshots stays", file: "store/store.go",
		old: "	s.dropForgottenPasts()\n", new: "",
		packages: "./store", tests: "PastWithout",
	},
	{
		name: "punch: a snapshot is no ceiling", file: "store/punch.go",
		old: "	return d.snapshots[k] != nil || k.Needed()", new: "	return k.Needed()",
		packages: "./store", tests: "AtRandom|ALife|DeletedSnapshot", flags: "-life.seeds 30",
	},
	{
		name: "punch: what covers a block is not flushed first", file: "store/punch.go",
		old: "			return k.Volume().Flush()\n", new: "			return nil\n",
		packages: "./store", tests: "ABlockThatNothing",
	},
	{
		name: "punch: hashes that are lost are not recorded as such", file: "store/punch.go",
		old: "				m.set(rec, true, rec.due || k == h.vlun)\n", new: "				m.set(rec, rec.punched, rec.due || k == h.vlun)\n",
		packages: "./store", tests: "AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "punch: the table is smaller in memory before it is on the disk", file: "store/punch.go",
		old: "	if err := sealed.WriteTable(s.records, imagesDir(s.dir), k.ImageID(), smaller, mark); err != nil {\n		return err\n	}\n", new: "	_ = smaller\n",
		packages: "./store", tests: "AtRandom|ALife", flags: "-life.seeds 30",
	},
	{
		name: "punch: it begins before every volume is there", file: "store/seal.go",
		old: "if !q.opened || !q.toReclaim()", new: "if !q.toReclaim()",
		packages: "./store", tests: "AtRandom|ALife", flags: "-life.seeds 200 -life.crashes 20",
	},
	{
		name: "punch: what is left of the last piece stays", file: "store/punch.go",
		old: "	return flush()\n}", new: "	return nil\n}",
		packages: "./store", tests: "APunchIsOf",
	},
	{
		name: "remove: what a crash has left of a large file stays", file: "store/recover.go",
		old: "			s.sealer.remove(removal{id: id, dataBytes: sizeBytes})\n", new: "",
		packages: "./store", tests: "ARemovalThatIs",
	},
	{
		name: "remove: a large file goes at once", file: "store/remove.go",
		old: "	if r.dataBytes > s.atOnceBytes {", new: "	if false {",
		packages: "./store", tests: "NoCommandWaitsForTheRemoval|ARemovalThatIs",
	},
	{
		name: "free: only the first piece of each segment goes", file: "image/file/file.go",
		old: "			if err := rest(sizeBytes); err != nil {\n				return err\n			}\n", new: "			if err := rest(sizeBytes); err != nil {\n				return err\n			}\n			break\n",
		packages: "./image/file", tests: "Free",
	},
	{
		name: "fold: nobody waits for the readers of the lower image", file: "store/fold.go",
		old: "		if err := m.vlun.Volume().Moved(ctx, m.from, m.vlun, f.taken); err != nil {\n			return err\n		}\n", new: "		_ = m\n",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: the index stays with the lower image", file: "volume/move.go",
		old: "		if old.Slot() == slot {", new: "		if old.Slot() > slot {",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: over the head of a clone", file: "store/fold.go",
		old: "if i+1 == len(chain) || chain[i+1].ImageID() != f.upper.ImageID() ||", new: "if i+1 == len(chain) ||",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: nothing says that the upper image may hold more than its table", file: "store/fold.go",
		old: "		m.set(f.rec, f.rec.punched, true)\n", new: "",
		packages: "./store", tests: "Fold|FaultOfEach",
	},
	{
		name: "fold: the data is not synced before it counts", file: "store/fold.go",
		old: "	return c.to.Sync()\n", new: "	return nil\n",
		packages: "./store", tests: "Fold|FaultOfEach",
	},
	{
		name: "fold: a branch is made with the sums from before", file: "store/fold.go",
		old: "	s.chains.RLock() // no branch is made with the old one\n	defer s.chains.RUnlock()\n", new: "",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: the sums of one that was cut short stay", file: "store/punch.go",
		old: "	if exact {", new: "	if false && exact {",
		packages: "./store", tests: "Fold|FaultOfEach",
	},
	{
		name: "fold: an image is in two that are done together", file: "store/fold.go",
		old: "		if over--; used[i] || used[i+1] {", new: "		if over--; false {",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: of several that are done together only the first is recorded", file: "store/fold.go",
		old: "		for _, f := range g.folds {\n			if err := s.putLinkLocked(tx, d, f.upper,", new: "		for _, f := range g.folds[:1] {\n			if err := s.putLinkLocked(tx, d, f.upper,",
		packages: "./store", tests: "Fold|AtRandom|ALife", flags: "-life.seeds 60",
	},
	{
		name: "fold: one that fails ends those beside it", file: "store/fold.go",
		old: "		case err == nil:\n			return false\n		case errors.Is(err, errLooking)", new: "		case err == nil && !g.failed:\n			return false\n		case err == nil, errors.Is(err, errLooking)",
		packages: "./store", tests: "DoneTogether",
	},
	{
		name: "punch: of the ends that are recorded together only the first is", file: "store/punch.go",
		old: "	if err := s.putLinks(d, volume.Sealed, ended...); err != nil {", new: "	if err := s.putLinks(d, volume.Sealed, ended[:1]...); err != nil {",
		packages: "./store", tests: "PunchesAreRecorded",
	},
	{
		name: "index: what is forgotten is nobody's", file: "lookup/index.go",
		old: "{ x.Set(b, LeafBlocks, Unknown) }", new: "{ x.Set(b, LeafBlocks, 0) }",
		packages: "./lookup ./volume", tests: "Index",
	},
	{
		name: "index: a part of a leaf is known", file: "lookup/index.go",
		old: "(c.uniform == e || c.uniform == unknown):", new: "c.uniform == e:",
		packages: "./lookup ./volume", tests: "Index",
	},
	{
		name: "packed: a run that begins at the block is not found", file: "lookup/packed.go",
		old: "c.field(i, 0, low) <= dist; {", new: "c.field(i, 0, low) < dist; {",
		packages: "./lookup", tests: "Packed",
	},
	{
		name: "packed: in order, a block before the last one asked for is not found", file: "lookup/packed.go",
		old: "	if !a.began || b < a.asked {", new: "	if !a.began {",
		packages: "./lookup", tests: "Packed",
	},
	{
		name: "fold: a verification goes on", file: "store/fold.go",
		old: "	if !s.looking.TryLock() { // 6\n		return false, errLooking\n	}\n	defer s.looking.Unlock()\n", new: "",
		packages: "./store", tests: "Fold",
	},
	{
		name: "a blank index takes what nobody has asked for yet as newer", file: "volume/read.go",
		old: "			if newest == nil && e.Slot() != 0 {", new: "			if newest == nil && e.Slot() == 1 {",
		packages: "./volume ./store", tests: "Model|Conflict|Blank",
	},
	{
		name: "what images cover together counts for those older and newer than them", file: "store/punch.go",
		old: " || j.first <= c.image {", new: " {",
		packages: "./store", tests: "AtRandom|ALife|DeletedSnapshot", flags: "-life.seeds 30",
	},
	{
		name: "what images cover together counts below any ceiling", file: "store/punch.go",
		old: "n == 0 || unnamed[n-1].ImageID() != j.last ||", new: "n == 0 || j.last == 0 ||",
		packages: "./store", tests: "AtRandom|ALife|DeletedSnapshot", flags: "-life.seeds 30",
	},
	{
		name: "what images cover is not joined anew after a fold", file: "store/fold.go",
		old: "	s.sealer.joined = joined{} // the upper images cover more than they did\n", new: "",
		packages: "./store", tests: "Fold",
	},
	{
		name: "a slot is dealt again before the image that has it is dropped", file: "volume/numbers.go",
		old: "			taken = int(n.dealt) < len(list) && list[n.dealt] != nil", new: "			taken = false",
		packages: "./volume", tests: "Slot|Images",
	},
	{
		name: "a preserve that still waits for another volume loses what one holds of it", file: "store/preserve.go",
		old: "	if s.reserved[full] {\n		return fmt", new: "	if false {\n		return fmt",
	},
	{
		name: "the index learns a leaf without its newest table", file: "volume/warm.go",
		old: "		v.index.Learn(b, layers)", new: "		v.index.Learn(b, layers[:len(layers)-1])",
		packages: "./volume ./store", tests: "Model|AtRandom|Blank", flags: "",
	},
	{
		name: "a clone rests on what is not durable", file: "store/found.go",
		old: "	if err := s.fasten(d, k); err != nil {\n		return err\n	}\n", new: "",
		packages: "./store", tests: "APowerCutTakes",
	},
	{
		name: "what was founded is not recorded so", file: "store/found.go",
		old: "		return s.putLinkLocked(tx, d, k, volume.Sealing)\n", new: "		return nil\n",
		packages: "./store", tests: "APowerCutTakes|NoCloneAndNo",
	},
	{
		name: "what is founded is recorded as draining", file: "store/recover.go",
		old: "		l.Table, state = 1, volume.Sealing\n", new: "		l.Table = 1\n",
		packages: "./store", tests: "FoundedImage",
	},
	{
		name: "nobody seals what a deleted volume leaves to its clone", file: "store/store.go",
		old: "	s.sealElsewhere(d)\n", new: "",
		packages: "./store", tests: "DeletedBeforeItsSnapshotIsSealed",
	},
	{
		name: "a seal is recorded in one of the chains of its image", file: "store/recover.go",
		old: "	if d.sealed[k] == nil && !d.founded[k] {", new: "	if d.sealed[k] == nil || d.founded[k] {",
		packages: "./store", tests: "NoCloneAndNo",
	},
	{
		name: "a branch has the next image too", file: "store/clone.go",
		old: "		if below == k {\n			break\n", new: "		if below.ImageID() > k.ImageID() {\n			break\n",
		packages: "./store", tests: "AtRandom|ALife",
	},
	{
		name: "a diff leaves out what the older side has of its own", file: "store/compare.go",
		old: "frozen(older[n:])", new: "frozen(older[:0])",
		packages: "./store", tests: "Diff",
	},
	{
		name: "what still drains is compared", file: "store/compare.go",
		old: "	if k.State() == volume.Draining {\n", new: "	if false {\n",
		packages: "./store", tests: "Compared",
	},
	{
		name: "a comparison reads the newest table first", file: "store/compare.go",
		old: "	for i, k := range chain {\n", new: "	for i, k := range slices.Backward(chain) {\n",
		packages: "./store", tests: "Missed",
	},
	{
		name: "a comparison reads the live table last", file: "store/compare.go",
		old: "range slices.Backward(busy) {", new: "range busy {",
		packages: "./store", tests: "Missed",
	},
	{
		name: "changes are those of the tables when they are asked", file: "store/compare.go",
		old: "k.Table().Frozen()", new: "k.Table()",
		packages: "./store", tests: "Missed",
	},
	{
		name: "a live volume that was sealed meanwhile is not read again", file: "store/compare.go",
		old: "k.State() == volume.Sealed })", new: "false })",
		packages: "./store", tests: "ReadAgain",
	},
	{
		name: "what is dead in an image stays when it was folded", file: "store/fold.go",
		old: "		owes := d.sealed[f.lower].due || s.sealer.isToPunch(f.lower.ImageID())\n", new: "		owes := false\n",
		packages: "./store", tests: "IsFoldedIsGivenBack",
	},
	{
		name: "of many snapshots each is deleted in its own step", file: "store/delete.go",
		old: "	due, err := s.nameless(named...)\n", new: "	var due []punching\n	for _, h := range named {\n		due, err = s.nameless(h)\n	}\n",
		packages: "./store", tests: "InOneStep",
	},
	{
		name: "a delete that fails takes names away", file: "store/delete.go",
		old: "			h.disk.snapshots[h.vlun] = snaps[i]\n", new: "			_, _ = h, snaps[i]\n",
		packages: "./store", tests: "InOneStep",
	},
	{
		name: "one of many snapshots can be opened while they are deleted", file: "volume/volume.go",
		old: "	setRetired(vluns, true)\n", new: "	setRetired(vluns[1:], true)\n",
		packages: "./store", tests: "DeletedWithOthers",
	},
	{
		name: "what was received is not held against the hash that was promised", file: "store/incoming.go",
		old: "case rec.hash != in.hash:", new: "case rec.hash != in.hash && s.closed:",
		packages: "./store", tests: "Receiv|ChangesThat",
	},
	{
		name: "a snapshot is received above the high-water mark, and refused at its end", file: "store/incoming.go",
		old: "errors.Join(in.store.reserve.spare(), in.store.belowMark())", new: "in.store.reserve.spare()",
		packages: "./store", tests: "HighWater",
	},
	{
		name: "the volume may be written to while its changes come", file: "store/incoming.go",
		old: "if !in.request.unchangedSince(chain[:len(chain)-2], live) {", new: "if len(chain) < 2 {",
		packages: "./store", tests: "Receiv|ChangesThat",
	},
	{
		name: "the snapshots of a volume are lost when what was received takes its place", file: "store/incoming.go",
		old: "		in.disk.snapshots[own] = &same\n", new: "		_ = same\n",
		packages: "./store", tests: "Receiv|ChangesThat",
	},
	{
		name: "what a crash met on its way in stays", file: "store/incoming.go",
		old: "				err = tx.DeleteVolume(v.ID)\n", new: "",
		packages: "./store", tests: "WhatACrashMeets",
	},
	{
		name: "the frames of a stream are not bound to each other", file: "stream/stream.go",
		old: "	binary.LittleEndian.PutUint32(seed[:], before)\n", new: "	_ = before\n",
		packages: "./stream",
	},
	{
		name: "a preserve that was given up keeps its name", file: "store/preserve.go",
		old: "		h.disk.forget(h.vlun)\n", new: "		_ = h\n",
		packages: "./store", tests: "Preserve|Abort|Model|Give|Crash",
	},
	{
		name: "a preserve is made on a full disk", file: "store/reserve.go",
		old: "	if r.bytes == 0 {\n		return nil\n	}\n	free, err", new: "	if r.bytes >= 0 {\n		return nil\n	}\n	free, err",
		packages: "./store", tests: "Reserve|Full|Space|Fault",
	},
	// Keep and let go.
	{
		name: "keep: the newest of a bucket is kept", file: "keep/keep.go",
		old: "oldest := n == 0 || end.After(last[j])", new: "oldest := n == len(order)-1 || t.each.bucketEnd(snapshots[order[n+1]]).After(end)",
	},
	{
		name: "keep: a snapshot is judged by its own age, not its bucket's", file: "keep/keep.go",
		old: "oldest && end.After(now.Add(-t.within))", new: "oldest && snapshots[i].After(now.Add(-t.within))",
	},
	{
		name: "keep: the bound forgets the bucket that is cut in two", file: "keep/keep.go",
		old: "	return between + 2\n", new: "	return between + 1\n",
	},
	{
		name: "keep: missed times are not made up for", file: "keep/every.go",
		old: "	return !next.IsZero() && !next.After(now)", new: "	return !next.IsZero() && next.Equal(now)",
	},
	{
		name: "hold: a snapshot is deleted all the same", file: "store/delete.go",
		old: "		err = s.mayGo(info)\n", new: "		err = s.mayGo([]SnapshotInfo{info}[:0]...)\n",
		packages: "./store", tests: "Held|Hold|Clock|Retention",
	},
	{
		name: "hold: a volume is deleted all the same", file: "store/store.go",
		old: "	if err := s.mayGo(held...); err != nil {", new: "	if err := s.mayGo(held[:0]...); err != nil {",
		packages: "./store", tests: "Held|Hold|Clock",
	},
	{
		name: "hold: another one makes it shorter", file: "store/hold.go",
		old: "		if end.Before(m.heldUntil) {", new: "		if end.IsZero() {",
		packages: "./store", tests: "Held|Hold|Clock",
	},
	{
		name: "hold: release ends one with a date", file: "store/hold.go",
		old: "	info.Held = false // that is for this to end\n", new: "	info.Held, info.HeldUntil = false, time.Time{}\n",
		packages: "./store", tests: "Held|Hold|Clock",
	},
	{
		name: "hold: the clock is not looked at", file: "store/hold.go",
		old: "	if now.Add(clockSlack).Before(s.seen) {", new: "	if now.IsZero() {",
		packages: "./store", tests: "Held|Hold|Clock",
	},
	{
		name: "hold: the latest time is forgotten at a restart", file: "store/store.go",
		old: "	s.seen = state.Seen\n", new: "",
		packages: "./store", tests: "Held|Hold|Clock",
	},
	{
		name: "hold: it is in memory only", file: "store/recover.go",
		old: "		snap.marks.record(l.Snapshot)\n", new: "",
		packages: "./store", tests: "Held|Hold|Label|Crash.*Hold",
	},
	{
		name: "schedule: it deletes what a person made", file: "store/schedule.go",
		old: "return i.Schedule != x.record.Target ||", new: "return i.Name == \"\" ||",
		packages: "./store", tests: "Schedule|Retention",
	},
	{
		name: "schedule: it lets go what another group of its name made", file: "store/schedule.go",
		old: "		return g.Created\n", new: "		return time.Time{}\n",
		packages: "./store", tests: "VolumeThatHasLeft",
	},
	{
		name: "schedule: it stays when its volume goes", file: "store/store.go",
		old: "errors.Join(tx.DeleteSchedule(d.record.Name), s.leaveGroups(tx, d.record.Name))", new: "s.leaveGroups(tx, d.record.Name)",
		packages: "./store", tests: "Schedule",
	},
	{
		name: "schedule: one waits for another", file: "store/schedule.go",
		old: "			s.schedules.running.Go(func() { s.runSchedule(ctx, x) })", new: "			s.mu.Unlock()\n			s.runSchedule(ctx, x)\n			s.mu.Lock()",
		packages: "./store", tests: "Schedule",
	},
	{
		name: "schedule: it deletes though it can't preserve", file: "store/schedule.go",
		old: "	if err == nil || errors.Is(err, ErrNoSpace) || ", new: "	if err == nil || !errors.Is(err, ErrNoSpace) || ",
		packages: "./store", tests: "Schedule|Retention",
	},
	{
		name: "scheduled drill: a snapshot waits for it", file: "store/scheduledrill.go",
		old: "	s.schedules.running.Go(func() { s.runDrills(ctx, x) })", new: "	s.mu.Unlock()\n	s.runDrills(ctx, x)\n	s.mu.Lock()",
		packages: "./store", tests: "Drill",
	},
	{
		name: "scheduled drill: what a shutdown cut short is recorded", file: "store/scheduledrill.go",
		old: "	if err == nil {\n		err = ctx.Err()\n	}\n", new: "	if ctx.Err() != nil {\n		result, err = Drill{Command: x.record.Drill, ExitCode: 1}, nil\n	}\n",
		packages: "./store", tests: "Drill|Restart",
	},
	{
		name: "scheduled drill: what passed last is let go", file: "store/scheduledrill.go",
		old: " || info.Drill.ExitCode == 0 && !slices.ContainsFunc(made, newerPassed)", new: " || newerPassed(info)",
		packages: "./store", tests: "Drill|Kept",
	},
	{
		name: "scheduled drill: a program that others may write to runs", file: "cli/programs.go",
		old: "	case info.Mode().Perm()&0o022 != 0:", new: "	case info.Mode().Perm() == 0o022:",
		packages: "./cli", tests: "Program|WhatOthers",
	},
	{
		name: "scheduled drill: what a program has started outlives it", file: "cli/child.go",
		old: "		c.signal(cmd.Process, syscall.SIGKILL)\n", new: "		_ = cmd.Process.Signal(syscall.SIGKILL)\n",
		packages: "./cli", tests: "NothingIsLeft",
	},
	// The frontends.
	{
		name: "an NBD client may choose an export before TLS though it is required", file: "nbd/handshake.go",
		old: "return h.server.options.TLSMode == TLSRequire && !h.client.TLS", new: "return h.server.options.TLSMode > TLSRequire && !h.client.TLS",
	},
	{
		name: "a token is compared with nothing", file: "access/tokens.go",
		old: "if subtle.ConstantTimeCompare(hash[:], k.hash[:]) == 1 {", new: "if subtle.ConstantTimeCompare(hash[:], hash[:]) == 1 && k.name != \"\" {",
	},
}
