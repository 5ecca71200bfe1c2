//! The import table of `ARCHITECTURE.md`: the layer of each module, and the modules that it may
//! import.

/// The rows of the table, from the lowest layer to the highest.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    layer: String,
    modules: Vec<String>,
    /// Layers, modules, `earlier` (those to the left in the same row) or `all`.
    may_import: Vec<String>,
}

const HEADER: &str = "| layer | modules | may import |";

impl Table {
    /// Reads the import table; the words of a cell are separated by spaces or commas.
    pub(crate) fn parse(page: &str) -> Result<Self, String> {
        Self::parse_under(page, HEADER)
    }

    /// Reads the table of the same form that begins with the line `header`.
    pub(crate) fn parse_under(page: &str, header: &str) -> Result<Self, String> {
        let lines = page.lines().skip_while(|line| line.trim() != header);
        let lines = lines.skip(2).take_while(|line| line.starts_with('|'));
        let rows = lines.map(Row::parse).collect::<Result<Vec<_>, _>>()?;
        if rows.is_empty() {
            return Err(format!("there is no import table under the line `{header}`"));
        }
        let table = Self { rows };
        table.validate()?;
        Ok(table)
    }

    fn validate(&self) -> Result<(), String> {
        for (index, module) in self.modules().enumerate() {
            if self.modules().skip(index + 1).any(|other| other == module) {
                return Err(format!("the import table names `{module}` twice"));
            }
        }
        for word in self.rows.iter().flat_map(|row| &row.may_import) {
            let known = word == "all" || word == "earlier" || self.is_layer(word);
            if !known && self.row(word).is_none() {
                return Err(format!("the import table allows `{word}`, which it doesn't define"));
            }
        }
        Ok(())
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().flat_map(|row| row.modules.iter().map(String::as_str))
    }

    pub(crate) fn contains(&self, module: &str) -> bool {
        self.row(module).is_some()
    }

    /// Tells whether a file of module `from` may name module `to`.
    pub(crate) fn allows(&self, from: &str, to: &str) -> bool {
        let Some(row) = self.row(from) else { return false };
        let layer_of_to = self.row(to).map(|row| row.layer.as_str());
        from == to
            || row.may_import.iter().any(|word| match word.as_str() {
                "all" => true,
                "earlier" => row.position(to) < row.position(from),
                word => word == to || Some(word) == layer_of_to,
            })
    }

    /// The row of `module` in words, for messages.
    pub(crate) fn describe(&self, module: &str) -> String {
        self.row(module).map_or_else(String::new, |row| {
            let allowed = row.may_import.join(", ");
            let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed };
            format!("`{module}` ({}) may import {allowed}", row.layer)
        })
    }

    fn is_layer(&self, word: &str) -> bool {
        self.rows.iter().any(|row| row.layer == word)
    }

    fn row(&self, module: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.modules.iter().any(|name| name == module))
    }
}

impl Row {
    fn parse(line: &str) -> Result<Self, String> {
        let cells: Vec<Vec<String>> = line.trim().trim_matches('|').split('|').map(cell).collect();
        match cells.as_slice() {
            [layer, modules, may_import] if layer.len() == 1 && !modules.is_empty() => Ok(Self {
                layer: layer[0].clone(),
                modules: modules.clone(),
                may_import: may_import.clone(),
            }),
            _ => Err(format!("this row of the import table isn't layer, modules, imports: {line}")),
        }
    }

    /// The place of `module` in its row; a module of another row comes after them all.
    fn position(&self, module: &str) -> usize {
        self.modules.iter().position(|name| name == module).unwrap_or(usize::MAX)
    }
}

fn cell(text: &str) -> Vec<String> {
    let words = text.split([' ', ',']).map(|word| word.trim_matches('`'));
    words.filter(|word| !word.is_empty() && *word != "nothing").map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small table with every kind of row.
    pub(crate) const PAGE: &str = "\
# Imports

| layer | modules | may import |
|---|---|---|
| client | `capstead_client` | nothing |
| L1 | `schema` `limits` `id` | client, earlier |
| L2 | `storage` | L1 |
| L4 | `host` `gateway` | client, L1, L2 |
| L5 | `classes` | `lib` |
| L5 | `cli` `lib` | all |

After the table.
";

    #[test]
    fn rows_say_what_may_be_imported() {
        let table = Table::parse(PAGE).unwrap();
        let allowed = [
            ("id", "schema"),
            ("id", "capstead_client"),
            ("storage", "limits"),
            ("host", "storage"),
            ("host", "host"),
            ("classes", "lib"),
            ("cli", "host"),
        ];
        for (from, to) in allowed {
            assert!(table.allows(from, to), "{from} -> {to}");
        }
        let refused = [
            ("schema", "id"),
            ("schema", "storage"),
            ("storage", "capstead_client"),
            ("host", "gateway"),
            ("gateway", "host"),
            ("storage", "host"),
            ("classes", "host"),
            ("classes", "cli"),
            ("capstead_client", "lib"),
        ];
        for (from, to) in refused {
            assert!(!table.allows(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn a_broken_table_is_refused_with_the_reason() {
        let refused = [
            ("| L2 | `storage` | L1 |", "", "isn't layer, modules, imports"),
            ("| L2 | `storage` | L1 |", "| L2 | `id` | L1 |", "twice"),
            ("| L2 | `storage` | L1 |", "| L2 | `storage` | L9 |", "doesn't define"),
            (HEADER, "| a | b |", "no import table"),
        ];
        for (old, new, reason) in refused {
            let new = if new.is_empty() { "| L2 | `storage` |" } else { new };
            let problem = Table::parse(&PAGE.replace(old, new)).unwrap_err();
            assert!(problem.contains(reason), "{problem}");
        }
    }
}
