/*
 * How a prompt's KV lands in a decode worker, as kvtransfer/, decode/ and prefill/ do it, for Spin (spinroot.com).
 * `make model` runs it; docs/reliability.md argues with it.
 *
 * One prefill worker and one decode worker, each in several lives (incarnations), and one landing slot that is leased again
 * and again, LEASES times in a decode worker's life. Every lease is for another request and needs LAYERS writes.
 *
 * Nothing is timed. Every process may stand still between any two steps, so a stall, a slow network and a timeout that comes
 * too soon are interleavings like any other. Messages are sets: they overtake each other, and some are delivered twice.
 * Bytes are tags: which lease's they are. A digest is the tag itself, so collisions (2^-64) are outside the model; so is
 * whether a barrier write really proves what it is taken for (tests/integration/test_kvtransfer_failures.py measures that).
 *
 * What is left out makes it weaker than the code, never stronger: notifications are matched without the request's key and
 * attempt number (who sent what to whom must be enough), and leases end at any time instead of at a fixed one.
 *
 * Mutants (-D): what the code would be without one of its rules. Each must break a property.
 *   VERIFY_FIRST    the digest is checked in the landing slot, before the copy
 *   NO_DIGEST       it is not checked at all
 *   NO_QUIESCE      a slot is handed out again as soon as its request has ended
 *   NAMES_ALONE     workers are known by name: no incarnation in calls, notifications or transport addresses
 *   ABORT_BY_ADDRESS  whoever answers at the address answers for a lease
 *   OPENS_AGAIN     a lease that has ended well can be opened once more
 *   FORGETS         what was not confirmed is forgotten when the connection goes
 *   FREED_BY_TIME   a lease's end frees its slot
 *   COPY_UNLOCKED   whether the lease is open is asked before the copy, not during it
 *   ASKS_ONCE       a quarantined slot is not asked about again
 *   SAME_MEMORY     a retired slot's memory is the next one's, under a new registration
 *   ZONELESS        a lease does not say in which zone it lies: whichever was introduced last is meant
 *   WAITS_FOREVER   neither a request's wait for its KV nor its lease has a deadline
 * Assumption (-D): PUMP_PROVES  after the pump nothing of a dead sender can land. Without it the pump proves nothing.
 * -D FENCE asserts more: no byte lands in a slot that is not its lease's any more. -D LIVENESS: timeouts that come too soon
 * are HASTY in number, so that an answer is not too late for ever.
 */

#ifndef LEASES
#define LEASES 2
#endif
#ifndef DECODE_LIVES
#define DECODE_LIVES 1
#endif
#ifndef PREFILL_LIVES
#define PREFILL_LIVES 2
#endif
#ifndef LAYERS
#define LAYERS 2
#endif
#ifndef DUPLICATES
#define DUPLICATES 1
#endif
#ifndef BREAKS
#define BREAKS 1
#endif
#ifndef STOPS
#define STOPS 1
#endif
#ifndef RETIRES
#define RETIRES 1
#endif
#ifndef HASTY
#define HASTY 1
#endif

#define ALL_LEASES (DECODE_LIVES * LEASES)
#define ALL_WRITES (ALL_LEASES * LAYERS)

#if ALL_LEASES == 1
#define EACH_LEASE(X) X(0)
#elif ALL_LEASES == 2
#define EACH_LEASE(X) X(0) X(1)
#elif ALL_LEASES == 3
#define EACH_LEASE(X) X(0) X(1) X(2)
#elif ALL_LEASES == 4
#define EACH_LEASE(X) X(0) X(1) X(2) X(3)
#endif

#if ALL_WRITES == 1
#define EACH_WRITE(X) X(0)
#elif ALL_WRITES == 2
#define EACH_WRITE(X) X(0) X(1)
#elif ALL_WRITES == 3
#define EACH_WRITE(X) X(0) X(1) X(2)
#elif ALL_WRITES == 4
#define EACH_WRITE(X) X(0) X(1) X(2) X(3)
#elif ALL_WRITES == 6
#define EACH_WRITE(X) X(0) X(1) X(2) X(3) X(4) X(5)
#elif ALL_WRITES == 8
#define EACH_WRITE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#endif

#define LEASE_OF(i) ((i) / LAYERS)
#define LAYER_OF(i) ((i) % LAYERS)
#define LIFE_OF(g) ((g) / LEASES)
#define NUMBER_OF(g) ((g) % LEASES)

/* Whose bytes: 0 .. ALL_LEASES - 1 the lease's; or */
#define EMPTY 100
#define STRAY 101    /* of a write that was given up: whatever the sender had in its pool by then */
#define COMPUTED 102 /* by the decode worker itself */

/* ---- the network: what is under way, in no order */

byte prefill_call[ALL_LEASES]; /* 1 + the prefill life that it is meant for */
byte abort_call[ALL_LEASES];
byte answer; /* to the abort that the present lease waits for; one that nobody waits for any more is dropped at once */
bool sent;   /* Sent(quiesced) for the present lease */
bool notice[ALL_WRITES]; /* a landed write's notification */
byte duplicates = DUPLICATES;

#define NO 1
#define YES 2

mtype:write = { UNPOSTED, POSTED, LANDED, LATE, OVER };
/* LATE: nobody holds its handle any more, its bytes may still land */
mtype:write written[ALL_WRITES] = OVER;

/* ---- the decode worker in its present life */

mtype:slot = { FREE, LEASED, QUIESCING, QUARANTINED, PUMPING, RETIRED };
mtype:request = { NONE, REMOTE, HERE, READY };

bool decode_up = true;
byte decode_life;
mtype:slot slot_state = FREE;
byte landing[LAYERS] = EMPTY; /* the slot's bytes */
byte pool[LAYERS] = EMPTY;    /* the request's blocks in the pool */
mtype:request request = NONE;
byte zone;        /* which landing zone is in use: each has addresses of its own */
byte zone_of[ALL_LEASES];
byte lease;      /* whose slot it is: global number, as its bytes' tag */
byte next_lease; /* of this life */
byte peer;       /* the prefill life that the lease is for */
bool open;       /* what lands is copied */
bool arrived[LAYERS];
byte taken;      /* 1 + layer of the notification in hand */
byte announced;  /* the digest that came with it */
bool asking;

/* ---- the prefill worker in its present life: its sender */

mtype:transfer = { UNKNOWN, OPEN, FENCING, UNCONFIRMED, CUT };
/* CUT: unconfirmed, and the connection that its writes took is gone: no barrier can tell any more */

bool prefill_up = true;
bool stopped;
bool stopped_for_good;
byte prefill_life;
mtype:transfer transfer[ALL_LEASES] = UNKNOWN;
bool spent[ALL_LEASES];  /* opened or aborted: can not be opened again */
bool waiter[ALL_LEASES]; /* an abort waits for the barrier */

byte breaks = BREAKS;
byte retires = RETIRES;
byte stops = STOPS;
byte hasty = HASTY;

#define prefill_runs (prefill_up && !stopped)
#define peer_is_gone (peer < prefill_life || !prefill_up)

#ifdef LIVENESS
#define too_soon (hasty > 0)
#define spend_hasty() if :: hasty > 0 -> hasty-- :: else fi
#else
#define too_soon true
#define spend_hasty() skip
#endif

#ifdef NAMES_ALONE
#define meant_for_this_life(message) true
#define is_of_this_lease(i) (open && NUMBER_OF(LEASE_OF(i)) == NUMBER_OF(lease) && !arrived[LAYER_OF(i)])
#define reaches_life(i) true
#else
#define meant_for_this_life(message) ((message) == 1 + prefill_life)
#define is_of_this_lease(i) (open && LEASE_OF(i) == lease && !arrived[LAYER_OF(i)])
#define reaches_life(i) (LIFE_OF(LEASE_OF(i)) == decode_life)
#endif

/* What is on its way to a retired zone lands in memory that nobody reads. */
#ifdef ZONELESS
#define reaches_zone(i) reaches_life(i)
#else
#define reaches_zone(i) (reaches_life(i) && zone_of[LEASE_OF(i)] == zone)
#endif

#if defined(NAMES_ALONE) || defined(ABORT_BY_ADDRESS)
#define may_answer_abort(message) true
#else
#define may_answer_abort(message) meant_for_this_life(message)
#endif

/* ================ the landing slot: kvtransfer/landing.py's table, edge by edge (a test compares them) */

#define move(from, event, to) assert(slot_state == from); slot_state = to

inline slot_freed() {
    asking = false;
    answer = 0;
    sent = false
}

inline release_quiesced() {
    if
    :: slot_state == LEASED -> move(LEASED, quiesced, FREE); slot_freed()
    :: slot_state == QUIESCING -> move(QUIESCING, quiesced, FREE); slot_freed()
    :: slot_state == QUARANTINED -> move(QUARANTINED, quiesced, FREE); slot_freed()
    :: else
    fi
}

inline release_unconfirmed() {
    if
    :: slot_state == LEASED -> move(LEASED, unconfirmed, QUARANTINED)
    :: slot_state == QUIESCING -> move(QUIESCING, unconfirmed, QUARANTINED)
    :: else
    fi
}

inline expire() {
    if
    :: slot_state == LEASED -> move(LEASED, expire, QUARANTINED)
    :: slot_state == QUIESCING -> move(QUIESCING, expire, QUARANTINED)
    fi
}

inline begin_pumping() {
    if
    :: slot_state == LEASED -> move(LEASED, peer_gone, PUMPING)
    :: slot_state == QUIESCING -> move(QUIESCING, peer_gone, PUMPING)
    :: slot_state == QUARANTINED -> move(QUARANTINED, peer_gone, PUMPING)
    fi
}

#define holds(what) (pool[0] == (what) && pool[LAYERS - 1] == (what))
#define fill_pool(what) pool[0] = what; pool[LAYERS - 1] = what; arrived[0] = false; arrived[LAYERS - 1] = false

/* The lease ends with an error: nothing is copied any more, and the request, which owns its blocks again, is computed here. */
inline fail_lease() {
    if
    :: open ->
        open = false;
        request = HERE;
#ifndef COPY_UNLOCKED
        taken = 0;
        announced = 0;
#endif
        fill_pool(COMPUTED)
    :: else
    fi
}


#ifdef ASKS_ONCE
#define may_ask (slot_state != QUARANTINED)
#else
#define may_ask true
#endif

/* ================ decode: decode/flow.py, remote_prefill.py, quarantine.py */

active proctype Flow() {
    do
    :: d_step { /* Receiver.reserve, then the call */
        decode_up && request == NONE && slot_state == FREE && next_lease < LEASES ->
        move(FREE, reserve, LEASED);
        lease = decode_life * LEASES + next_lease;
        next_lease++;
        zone_of[lease] = zone;
        peer = prefill_life;
        open = true;
        request = REMOTE;
        prefill_call[lease] = 1 + peer
       }
#ifndef WAITS_FOREVER
    :: d_step { /* a deadline, an error of the call, a client that went away: Receiver.cancel */
        decode_up && request == REMOTE && open ->
        fail_lease();
        if
        :: slot_state == LEASED -> move(LEASED, cancel, QUIESCING)
        :: else
        fi
       }
#endif
    :: d_step { /* decode from what was computed here */
        decode_up && request == HERE ->
        assert(holds(COMPUTED));
        request = NONE;
        fill_pool(EMPTY)
       }
    :: d_step { /* decode from what has landed */
        decode_up && request == READY ->
        assert(holds(lease));
        request = NONE;
        fill_pool(EMPTY)
       }
    /* RemotePrefill.settle, and Quarantine later on */
#ifdef NO_QUIESCE
    :: d_step { decode_up && !open && request != REMOTE && slot_state != FREE && slot_state != PUMPING -> slot_state = FREE }
#else
    :: d_step { decode_up && !open && sent && slot_state != FREE -> release_quiesced() }
    :: d_step {
        decode_up && !open && !asking && slot_state != FREE && slot_state != PUMPING && may_ask ->
        asking = true;
        answer = 0;
        abort_call[lease] = 1 + peer
       }
    :: d_step { decode_up && asking && answer == YES -> release_quiesced(); asking = false }
    :: d_step { decode_up && asking && answer == NO -> release_unconfirmed(); asking = false; answer = 0 }
    :: d_step {
        decode_up && asking && answer == 0 &&
        (too_soon || peer_is_gone || stopped || (abort_call[lease] == 0 && !waiter[lease])) ->
        if
        :: peer_is_gone || stopped || (abort_call[lease] == 0 && !waiter[lease])
        :: else -> spend_hasty()
        fi;
        release_unconfirmed();
        asking = false
       }
#endif
    od
}

/* ---- the receiver thread: kvtransfer/receiver.py, pool_copy.py */

inline take_notice(i) {
    if
    :: is_of_this_lease(i) ->
        taken = 1 + LAYER_OF(i);
        announced = LEASE_OF(i);
        arrived[LAYER_OF(i)] = true
#ifdef VERIFY_FIRST
        ;
        if
        :: landing[LAYER_OF(i)] != LEASE_OF(i) -> fail_lease(); taken = 0
        :: else
        fi
#endif
    :: else /* dropped */
    fi
}

inline copy_landed() {
#ifdef COPY_UNLOCKED
    if
    :: true ->
#else
    if
    :: !open
    :: else ->
#endif
        pool[taken - 1] = landing[taken - 1];
        if
#if !defined(VERIFY_FIRST) && !defined(NO_DIGEST)
        :: pool[taken - 1] != announced -> fail_lease()
        :: pool[taken - 1] == announced && arrived[0] && arrived[LAYERS - 1] && open -> open = false; request = READY
#else
        :: arrived[0] && arrived[LAYERS - 1] && open -> open = false; request = READY
#endif
        :: else
        fi
    fi;
    taken = 0;
    announced = 0
}

#define TAKE(i) \
    :: d_step { decode_up && taken == 0 && notice[i] -> notice[i] = false; take_notice(i) } \
    :: d_step { decode_up && taken == 0 && notice[i] && duplicates > 0 -> duplicates--; take_notice(i) }

active proctype Receiver() {
    do
    EACH_WRITE(TAKE)
    :: d_step { decode_up && taken > 0 -> copy_landed() }
    od
}

/* ---- the janitors: Receiver._expire_and_free, Quarantine._bury_the_gone */

#define IS_OVER(i) && (written[i] != LATE || LEASE_OF(i) != lease)
#ifdef PUMP_PROVES
#define is_pumped (true EACH_WRITE(IS_OVER))
#else
#define is_pumped true
#endif

active proctype Janitor() {
    do
#ifndef WAITS_FOREVER
    :: d_step { /* the lease's own end, whatever becomes of its request */
        decode_up && (slot_state == LEASED || slot_state == QUIESCING) ->
#ifdef FREED_BY_TIME
        slot_state = FREE; slot_freed();
#else
        expire();
#endif
        fail_lease()
       }
#endif
    :: d_step { /* proof that the peer's process has ended */
        decode_up && peer_is_gone && (slot_state == LEASED || slot_state == QUIESCING || slot_state == QUARANTINED) ->
        fail_lease();
        begin_pumping()
       }
    :: d_step { /* nobody has proved anything for too long: another zone takes this one's place */
        decode_up && slot_state == QUARANTINED && retires > 0 ->
        retires--;
        move(QUARANTINED, retire, RETIRED);
#ifndef SAME_MEMORY
        zone++;
        landing[0] = EMPTY;
        landing[LAYERS - 1] = EMPTY;
#endif
        slot_state = FREE;
        slot_freed()
       }
    :: d_step {
        decode_up && slot_state == PUMPING && is_pumped ->
        move(PUMPING, pumped, FREE);
        slot_freed()
       }
    od
}

/* ================ prefill: prefill/jobs.py, kvtransfer/sender.py, writer.py, quiesce.py */

/* Writer.abandon: true when something may still land. */
inline abandon(g) {
    may_land = false;
    for (m : 0 .. LAYERS - 1) {
        if
        :: written[(g) * LAYERS + m] == POSTED || written[(g) * LAYERS + m] == LANDED ->
            written[(g) * LAYERS + m] = LATE;
            may_land = true
        :: written[(g) * LAYERS + m] == UNPOSTED -> written[(g) * LAYERS + m] = OVER
        :: else
        fi
    }
    m = 0
}

inline tell(g, what) {
    if
    :: asking && lease == g -> answer = what
    :: else
    fi
}

inline answer_abort(g, what) {
    if
    :: waiter[g] ->
        waiter[g] = false;
        tell(g, what)
    :: else
    fi
}

inline end_quiesced(g) {
    transfer[g] = UNKNOWN;
    if
    :: lease == g && slot_state != FREE -> sent = true
    :: else
    fi;
    answer_abort(g, YES)
}

/* Sender._fail: what was under way is fenced by a barrier on the connection that it took. */
inline fail_transfer(g) {
    abandon(g);
    if
    :: may_land -> transfer[g] = FENCING
    :: else -> end_quiesced(g)
    fi;
    may_land = false
}

#ifdef OPENS_AGAIN
#define may_open(g) (!spent[g] && transfer[g] == UNKNOWN)
#define note_opened(g) skip
#else
#define may_open(g) (!spent[g])
#define note_opened(g) spent[g] = true
#endif

inline take_prefill(g) {
    if
    :: meant_for_this_life(prefill_call[g]) && may_open(g) ->
        note_opened(g);
        transfer[g] = OPEN;
        for (m : 0 .. LAYERS - 1) {
            if
            :: written[(g) * LAYERS + m] == OVER -> written[(g) * LAYERS + m] = UNPOSTED
            :: else
            fi
        }
        m = 0
    :: else /* refused */
    fi
}

inline take_abort(g) {
    if
    :: !may_answer_abort(abort_call[g]) -> tell(g, NO)
    :: else ->
        spent[g] = true;
        waiter[g] = true;
        if
        :: transfer[g] == OPEN -> fail_transfer(g)
        :: transfer[g] == FENCING
        :: transfer[g] == UNCONFIRMED -> transfer[g] = FENCING
        :: transfer[g] == CUT -> answer_abort(g, NO)
        :: else -> answer_abort(g, YES)
        fi
    fi
}

#define SERVE(g) \
    :: d_step { prefill_runs && prefill_call[g] > 0 -> take_prefill(g); prefill_call[g] = 0 } \
    :: d_step { prefill_runs && prefill_call[g] > 0 && duplicates > 0 -> duplicates--; take_prefill(g) } \
    :: d_step { prefill_runs && abort_call[g] > 0 -> take_abort(g); abort_call[g] = 0 } \
    :: d_step { prefill_runs && abort_call[g] > 0 && duplicates > 0 -> duplicates--; take_abort(g) }

active proctype Service() {
    byte m;
    bool may_land;
    do
    EACH_LEASE(SERVE)
    od
}

#define is_next(i) (LAYER_OF(i) == 0 || written[LEASE_OF(i) * LAYERS] != UNPOSTED)

#define POST(i) \
    :: d_step { prefill_runs && transfer[LEASE_OF(i)] == OPEN && written[i] == UNPOSTED && is_next(i) -> written[i] = POSTED } \
    :: d_step { prefill_runs && transfer[LEASE_OF(i)] == OPEN && written[i] == LANDED -> written[i] = OVER; notice[i] = true }

#if LAYERS == 1
#define any_late(g) (written[g] == LATE)
#define all_over(g) (written[g] == OVER)
#else
#define any_late(g) (written[(g) * 2] == LATE || written[(g) * 2 + 1] == LATE)
#define all_over(g) (written[(g) * 2] == OVER && written[(g) * 2 + 1] == OVER)
#endif

#define SEND(g) \
    :: d_step { prefill_runs && transfer[g] == OPEN && all_over(g) -> end_quiesced(g) } \
    :: d_step { /* a write or the lease takes too long */ prefill_runs && transfer[g] == OPEN -> fail_transfer(g) } \
    :: d_step { /* the barrier is done: all before it is */ \
        prefill_runs && transfer[g] == FENCING && !any_late(g) -> end_quiesced(g) } \
    :: d_step { /* the barrier takes too long, or the decode worker is gone */ \
        prefill_runs && transfer[g] == FENCING && (too_soon || !decode_up || LIFE_OF(g) != decode_life) -> \
        if \
        :: !decode_up || LIFE_OF(g) != decode_life \
        :: else -> spend_hasty() \
        fi; \
        transfer[g] = UNCONFIRMED; answer_abort(g, NO) }

active proctype Sender() {
    byte m;
    bool may_land;
    do
    EACH_WRITE(POST)
    EACH_LEASE(SEND)
    od
}

/* ================ the wire: bytes land when they like, those of a write that was given up in any number of pieces */

inline lands(i, whose) {
    if
    :: decode_up && reaches_zone(i) ->
#ifdef FENCE
        assert(slot_state != FREE && lease == LEASE_OF(i));
#endif
        landing[LAYER_OF(i)] = whose
    :: else
    fi
}

#define LAND(i) \
    :: d_step { written[i] == POSTED -> written[i] = LANDED; lands(i, LEASE_OF(i)) } \
    :: d_step { written[i] == LATE && decode_up && reaches_zone(i) && landing[LAYER_OF(i)] != STRAY -> lands(i, STRAY) } \
    :: d_step { written[i] == LATE -> written[i] = OVER }

active proctype Wire() {
    do
    EACH_WRITE(LAND)
    od
}

/* ================ faults */

#define DIE(g) \
    abandon(g); transfer[g] = UNKNOWN; spent[g] = false; waiter[g] = false;

#ifdef FORGETS
#define AFTER_BREAK UNKNOWN
#else
#define AFTER_BREAK CUT
#endif

#define BREAK(g) \
    if \
    :: transfer[g] == OPEN -> \
        abandon(g); \
        if \
        :: may_land -> transfer[g] = AFTER_BREAK; answer_abort(g, NO) \
        :: else -> end_quiesced(g) \
        fi; \
        may_land = false \
    :: transfer[g] == FENCING || transfer[g] == UNCONFIRMED || transfer[g] == CUT -> \
        transfer[g] = AFTER_BREAK; answer_abort(g, NO) \
    :: else \
    fi;

active proctype Faults() {
    byte m;
    bool may_land;
    do
    :: d_step { /* SIGKILL: its library's and its kernel's bytes live on */
        prefill_up && prefill_life + 1 < PREFILL_LIVES ->
        prefill_up = false;
        stopped = false;
        EACH_LEASE(DIE)
        may_land = false
       }
    :: d_step { !prefill_up -> prefill_up = true; prefill_life++ }
    :: d_step {
        decode_up && decode_life + 1 < DECODE_LIVES ->
        decode_up = false;
        slot_state = FREE;
        request = NONE;
        open = false;
        taken = 0;
        announced = 0;
        asking = false;
        lease = 0;
        peer = 0;
        answer = 0;
        sent = false;
        fill_pool(EMPTY);
        landing[0] = EMPTY;
        landing[LAYERS - 1] = EMPTY
       }
    :: d_step { !decode_up -> decode_up = true; decode_life++; next_lease = 0 }
    :: d_step { /* the connection is lost between two living processes, or another worker took the decode worker's name */
        prefill_runs && breaks > 0 ->
        breaks--;
        EACH_LEASE(BREAK)
       }
#ifdef LIVENESS
    :: d_step { prefill_runs && stops > 0 -> stops--; stopped = true }
    :: d_step { stopped && !stopped_for_good -> stopped = false }
    :: d_step { stopped && !stopped_for_good -> stopped_for_good = true }
#endif
    od
}

/* ================ every reservation ends */

/* Also where nobody can tell: a living sender whose connection broke with writes under way, or that stands still for good. */

#ifdef CHECK_REQUESTS
ltl requests_end { [] (request == REMOTE -> <> (request != REMOTE)) }
#endif
#ifdef CHECK_SLOTS
ltl slots_return { [] (slot_state != FREE -> <> (slot_state == FREE)) }
#endif
