-- Samples did not tell their engine. Where one engine alone scored the checkpoint on the task, it is that; otherwise it stays unknown.
SELECT r.* REPLACE (coalesce(r.engine, e.engine) AS engine)
FROM older AS r
LEFT JOIN (
    SELECT s.checkpoint_id, s.task, s.task_version, s.format, s.shots, min(s.engine) AS engine
    FROM parts.scores AS s
    GROUP BY ALL
    HAVING count(DISTINCT s.engine) = 1 AND count(*) = count(s.engine)
) AS e
    ON e.checkpoint_id = r.checkpoint_id AND e.task = r.task AND e.format = r.format
    AND e.task_version IS NOT DISTINCT FROM r.task_version AND e.shots IS NOT DISTINCT FROM r.shots
