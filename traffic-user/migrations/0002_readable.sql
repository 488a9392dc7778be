-- For people with a SQL shell: what is booked, with names in the place of numbers.
CREATE VIEW booked AS
SELECT
    CASE bucket.level WHEN 0 THEN '5min' WHEN 1 THEN 'hour' ELSE 'day' END AS level,
    datetime(bucket."begin", 'unixepoch') AS begin_utc,
    datetime(bucket."end", 'unixepoch') AS end_utc,
    bucket.parent IS NULL AS counts, -- those that count add up to the total
    subject.kind,
    subject.key,
    subject.name,
    CASE usage.key >> 24 & 3
        WHEN 0 THEN 'l3' WHEN 1 THEN 'l3-skb' WHEN 2 THEN 'wire' ELSE 'payload'
    END AS layer,
    usage.input_bytes,
    usage.output_bytes,
    usage.input_packets,
    usage.output_packets,
    CASE usage.coverage WHEN 0 THEN 'complete' WHEN 1 THEN 'estimated' ELSE 'gap' END AS coverage
FROM usage
JOIN bucket ON bucket.id = usage.key >> 29
JOIN subject ON subject.id = usage.key & 0xffffff;
