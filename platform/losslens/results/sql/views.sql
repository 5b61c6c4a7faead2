-- What users query. `parts.<table>` (made by database.py) holds every row as it was written; a view here gives one row
-- per key and says which row wins when several were written. The order goes through every column (`p`: the whole row), so
-- that different rows never tie. Columns are qualified, because DuckDB 2.0 takes a bare one for the parameter of equal name
-- when a macro reads the view.

-- A run or checkpoint described again (a corrected import) replaces the older description.
CREATE OR REPLACE VIEW runs AS
SELECT * FROM parts.runs AS p
QUALIFY row_number() OVER (PARTITION BY p.run_id ORDER BY p.created_at DESC NULLS LAST, p.spec, p) = 1;

CREATE OR REPLACE VIEW checkpoints AS
SELECT * FROM parts.checkpoints AS p
QUALIFY row_number() OVER (PARTITION BY p.checkpoint_id ORDER BY p.created_at DESC NULLS LAST, p.path, p) = 1;

-- The loss measured on the most tokens.
CREATE OR REPLACE VIEW losses AS
SELECT * FROM parts.losses AS p
QUALIFY row_number() OVER (
    PARTITION BY p.checkpoint_id, p.dataset, p.unit ORDER BY p.tokens DESC NULLS LAST, p.stderr, p.value, p.bytes, p.method
) = 1;

-- Every engine and every version keep their rows, so that they can be compared; `curve` chooses one.
CREATE OR REPLACE VIEW scores AS
SELECT * FROM parts.scores AS p
QUALIFY row_number() OVER (
    PARTITION BY p.checkpoint_id, p.task, p.task_version, p.format, p.shots, p.metric, p.engine
    ORDER BY p.scored_at NULLS LAST, p.value, p.stderr, p.n, p.chance, p.higher_is_better
) = 1;

CREATE OR REPLACE VIEW samples AS
SELECT * FROM parts.samples AS p
QUALIFY row_number() OVER (
    PARTITION BY p.checkpoint_id, p.task, p.task_version, p.format, p.shots, p.item_id, p.option, p.engine
    ORDER BY p.logprob, p.generated, p.is_gold, p.tokens, p.bytes, p.correct, p.scored_bytes
) = 1;

CREATE OR REPLACE VIEW train_log AS
SELECT * FROM parts.train_log AS p
QUALIFY row_number() OVER (PARTITION BY p.run_id, p.attempt, p.step ORDER BY p.time DESC NULLS LAST, p.loss, p) = 1;

-- The latest analysis of each curve.
CREATE OR REPLACE VIEW thresholds AS
SELECT * FROM parts.thresholds AS p
QUALIFY row_number() OVER (
    PARTITION BY p.study, p.task, p.format, p.shots, p.metric, p.loss_dataset, p.loss_unit ORDER BY p.computed_at DESC NULLS LAST, p.method, p
) = 1;

-- The latest comparison of each curve by a property along an axis: all its levels, and none of an older comparison, whose levels or
-- reference may have been others (a study asked before its smallest size was there).
CREATE OR REPLACE VIEW same_curve AS
SELECT * FROM parts.same_curve AS p
QUALIFY
    p.computed_at IS NOT DISTINCT FROM max(p.computed_at) OVER (
        PARTITION BY p.study, p.task, p.format, p.shots, p.metric, p.loss_dataset, p.loss_unit, p.property, p.axis
    )
    AND row_number() OVER (
        PARTITION BY
            p.study, p.task, p.format, p.shots, p.metric, p.loss_dataset, p.loss_unit, p.property, p.level, p.reference, p.axis
        ORDER BY p.computed_at DESC NULLS LAST, p.method, p
    ) = 1;

-- The latest forecast of each score of each target.
CREATE OR REPLACE VIEW forecasts AS
SELECT * FROM parts.forecasts AS p
QUALIFY row_number() OVER (
    PARTITION BY p.study, p.task, p.format, p.shots, p.metric, p.loss_dataset, p.loss_unit, p.target
    ORDER BY p.computed_at DESC NULLS LAST, p.method, p
) = 1;

-- One row per (checkpoint, loss dataset and unit, task, format, shots, metric). Of several scores the highest task
-- version wins, then the earliest, then the first engine by name; further columns as in `scores`, so one pass does both.
-- Scores and losses whose checkpoint or run nobody described still appear, with NULL for what is unknown.
CREATE OR REPLACE VIEW curve AS
WITH chosen AS (
    SELECT * FROM parts.scores AS s
    QUALIFY row_number() OVER (
        PARTITION BY s.checkpoint_id, s.task, s.format, s.shots, s.metric
        ORDER BY
            s.task_version DESC NULLS LAST, s.scored_at NULLS LAST, s.engine,
            s.value, s.stderr, s.n, s.chance, s.higher_is_better
    ) = 1
),
placed AS (  -- one join for each score instead of three
    SELECT
        l.checkpoint_id, l.dataset AS loss_dataset, l.unit AS loss_unit, l.value AS loss, c.run_id, c.step, c.tokens, c.flops,
        r.study, r.size, r.params, r.architecture, r.optimizer, r.seed
    FROM losses AS l
    LEFT JOIN checkpoints AS c USING (checkpoint_id)
    LEFT JOIN runs AS r ON r.run_id = c.run_id
)
SELECT
    l.study, l.run_id, l.size, l.params, l.architecture, l.optimizer, l.seed, l.step, l.tokens, l.flops,
    l.loss_dataset, l.loss_unit, l.loss,
    s.task, s.format, s.shots, s.metric, s.value, s.stderr, s.n, s.chance, s.higher_is_better, s.checkpoint_id, s.engine
FROM chosen AS s
JOIN placed AS l USING (checkpoint_id);

-- Every metric computed anew from `samples`, as losslens/tasks/metrics.py does, in the columns of `scores`. A metric appears only
-- where each item holds what it needs. Beside those of `scores`: token_prob, the geometric mean of the probabilities of the gold
-- answer's tokens. The chance of exact_match is not in `samples`: NULL.
CREATE OR REPLACE VIEW rescored AS
WITH options AS (
    SELECT
        s.checkpoint_id, s.task, s.task_version, s.format, s.shots, s.engine, s.item_id, s.is_gold, s.logprob, s.correct, s.tokens,
        s.scored_bytes, s.logprob / s.bytes AS per_byte,
        max(s.logprob) OVER item AS top, max(s.logprob / s.bytes) OVER item AS top_per_byte
    FROM samples AS s
    WINDOW item AS (PARTITION BY s.checkpoint_id, s.task, s.task_version, s.format, s.shots, s.engine, s.item_id)
),
items AS (
    SELECT
        o.checkpoint_id, o.task, o.task_version, o.format, o.shots, o.engine, o.item_id,
        count(*) AS k,
        count(*) FILTER (WHERE o.is_gold) = 1 AND count(*) = count(o.logprob) AS known,
        count(*) = count(o.per_byte) AS known_per_byte,
        bool_or(o.correct) AS correct,
        max(o.logprob) FILTER (WHERE o.is_gold) AS gold,
        max(o.tokens) FILTER (WHERE o.is_gold) AS tokens,
        max(o.scored_bytes) FILTER (WHERE o.is_gold) AS scored_bytes,
        max(o.per_byte) FILTER (WHERE o.is_gold) AS gold_per_byte,
        any_value(o.top) AS top,
        any_value(o.top_per_byte) AS top_per_byte,
        count(*) FILTER (WHERE o.logprob = o.top) AS ties,
        count(*) FILTER (WHERE o.per_byte = o.top_per_byte) AS ties_per_byte,
        sum(exp(o.logprob - o.top)) AS total,
        sum(exp(o.logprob - o.top) ** 2) AS squares
    FROM options AS o
    GROUP BY ALL
),
measured AS (
    SELECT
        i.checkpoint_id, i.task, i.task_version, i.format, i.shots, i.engine,
        unnest([
            {'metric': 'acc', 'asked': i.format <> 'open', 'higher_is_better': true, 'chance': 1 / i.k,
             'value': CASE WHEN i.known THEN (i.gold = i.top)::INT / i.ties END},
            {'metric': 'acc_norm', 'asked': i.format = 'text', 'higher_is_better': true, 'chance': 1 / i.k,
             'value': CASE WHEN i.known AND i.known_per_byte THEN (i.gold_per_byte = i.top_per_byte)::INT / i.ties_per_byte END},
            {'metric': 'correct_choice_prob', 'asked': i.format <> 'open', 'higher_is_better': true, 'chance': 1 / i.k,
             'value': CASE WHEN i.known THEN exp(i.gold - i.top) / i.total END},
            {'metric': 'brier', 'asked': i.format <> 'open', 'higher_is_better': false, 'chance': 1 - 1 / i.k,
             'value': CASE WHEN i.known THEN 1 - 2 * exp(i.gold - i.top) / i.total + i.squares / i.total ** 2 END},
            {'metric': 'bits_per_byte', 'asked': i.format <> 'letter', 'higher_is_better': false, 'chance': 8.0,
             'value': CASE WHEN i.known THEN -i.gold / ln(2) / i.scored_bytes END},
            {'metric': 'token_prob', 'asked': i.format = 'open', 'higher_is_better': true, 'chance': 0.0,
             'value': CASE WHEN i.known THEN exp(i.gold / i.tokens) END},
            {'metric': 'exact_match', 'asked': i.format = 'open', 'higher_is_better': true, 'chance': NULL::DOUBLE,
             'value': i.correct::INT::DOUBLE}
        ]) AS m
    FROM items AS i
)
SELECT
    d.checkpoint_id, d.task, d.task_version, d.format, d.shots, d.m.metric AS metric, avg(d.m.value) AS value,
    stddev_samp(d.m.value) / sqrt(count(*)) AS stderr, count(*) AS n, avg(d.m.chance) AS chance,
    d.m.higher_is_better AS higher_is_better, d.engine
FROM measured AS d
WHERE d.m.asked
GROUP BY ALL
HAVING count(*) = count(d.m.value) AND count(*) > 1;

-- The metrics that `scores` lacks, in the columns of `curve`: those of the highest task version, then the first engine by name.
CREATE OR REPLACE VIEW curve_of_samples AS
WITH chosen AS (
    SELECT * FROM rescored AS s
    QUALIFY row_number() OVER (
        PARTITION BY s.checkpoint_id, s.task, s.format, s.shots, s.metric ORDER BY s.task_version DESC NULLS LAST, s.engine
    ) = 1
)
SELECT
    r.study, c.run_id, r.size, r.params, r.architecture, r.optimizer, r.seed, c.step, c.tokens, c.flops,
    l.dataset AS loss_dataset, l.unit AS loss_unit, l.value AS loss,
    s.task, s.format, s.shots, s.metric, s.value, s.stderr, s.n, s.chance, s.higher_is_better, s.checkpoint_id, s.engine
FROM chosen AS s
JOIN losses AS l USING (checkpoint_id)
LEFT JOIN checkpoints AS c USING (checkpoint_id)
LEFT JOIN runs AS r ON r.run_id = c.run_id
WHERE s.chance IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM parts.scores AS p
    WHERE p.checkpoint_id = s.checkpoint_id AND p.task = s.task AND p.format = s.format AND p.metric = s.metric
        AND p.shots IS NOT DISTINCT FROM s.shots
);
