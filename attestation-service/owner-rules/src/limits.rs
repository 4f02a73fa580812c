// SPDX-License-Identifier: Apache-2.0
//! Caps on the text of rules. Cedar's parser calls itself for each level of nesting and each link of a chain: a text that is
//! deep enough would end the program. So it is measured first, by a reader that needs no stack.

use crate::RuleError;

/// Refuses a text that Cedar should not see.
pub(crate) fn check(source: &str) -> Result<(), RuleError> {
    if source.chars().count() > appraise::MAX_RULES {
        return Err(RuleError::Limit { what: "characters", most: appraise::MAX_RULES });
    }
    let mut counts = Counts::default();
    let mut chars = source.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            '"' => {
                skip_string(&mut chars);
                counts.token()?;
            }
            '/' if chars.peek() == Some(&'/') => for _ in chars.by_ref().take_while(|next| !ends_comment(*next)) {},
            '(' | '[' | '{' => counts.open()?,
            ')' | ']' | '}' => counts.close()?,
            ';' => counts.end()?,
            _ if is_word(next) => {
                while chars.next_if(|next| is_word(*next)).is_some() {}
                counts.token()?;
            }
            _ if next.is_whitespace() => {}
            _ => counts.token()?,
        }
    }
    Ok(())
}

/// Up to the closing quotation mark; a string that does not end is Cedar's to refuse.
fn skip_string(chars: &mut impl Iterator<Item = char>) {
    while let Some(next) = chars.next() {
        match next {
            '\\' => drop(chars.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// As Cedar has it: a lone carriage return ends a comment, too.
const fn ends_comment(next: char) -> bool {
    matches!(next, '\n' | '\r')
}

fn is_word(next: char) -> bool {
    next.is_alphanumeric() || next == '_'
}

#[derive(Default)]
struct Counts {
    depth: usize,
    tokens: usize,
    statements: usize,
}

impl Counts {
    fn token(&mut self) -> Result<(), RuleError> {
        raise(&mut self.tokens, MAX_TOKENS, "words and signs in one statement")
    }

    fn open(&mut self) -> Result<(), RuleError> {
        self.token()?;
        raise(&mut self.depth, MAX_DEPTH, "levels of brackets")
    }

    fn close(&mut self) -> Result<(), RuleError> {
        self.depth = self.depth.saturating_sub(1);
        self.token()
    }

    fn end(&mut self) -> Result<(), RuleError> {
        if self.depth == 0 {
            self.tokens = 0;
        }
        raise(&mut self.statements, MAX_STATEMENTS, "statements")
    }
}

fn raise(count: &mut usize, most: usize, what: &'static str) -> Result<(), RuleError> {
    *count = count.saturating_add(1);
    if *count > most { Err(RuleError::Limit { what, most }) } else { Ok(()) }
}

/// Levels of brackets, of all kinds together.
pub const MAX_DEPTH: usize = 16;
/// Words and signs in one statement.
pub const MAX_TOKENS: usize = 512;
/// Statements.
pub const MAX_STATEMENTS: usize = 64;
