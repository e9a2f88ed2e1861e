// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A figure as text.

/// Three significant digits, or all before the point.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        // A value that rounds to 0 has no sign. Differences of counts often do.
        below if below < 0.005 => return "0".to_owned(),
        below if below < 1.0 => 3,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (-0.001, "0"),
            (0.123_4, "0.123"),
            (5.678, "5.68"),
            (1234.5, "1234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
