CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, grp INTEGER, price REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000)
INSERT INTO item SELECT i, printf('item %d of %x', i, i * 7919 % 65536), i * 31 % 1009, (i * 7 % 997) / 10.0 FROM n;
CREATE INDEX by_group ON item(grp, price);
SELECT grp, count(*), round(sum(price), 3), max(name) FROM item GROUP BY grp ORDER BY 3 DESC, 1 LIMIT 10;
SELECT count(*) FROM item a JOIN item b ON a.grp = b.grp AND a.price < b.price WHERE a.id < 3000;
UPDATE item SET price = price * 1.01 WHERE id % 3 = 0;
SELECT substr(name, -4, 2) AS k, count(*), round(avg(price), 4)
	FROM item WHERE name LIKE '%a%' GROUP BY k ORDER BY 2 DESC, 1 LIMIT 10;
DELETE FROM item WHERE grp % 5 = 0;
SELECT count(*), round(total(price), 2) FROM item;
