//! Label selectors: `app=web,tier in (a,b),!legacy`, and the typed `LabelSelector` of objects.

use super::{SELECTOR_BYTES_MAX, SelectorError};
use crate::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use std::collections::BTreeMap;

/// What is asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values, or not there.
    NotIn,
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
    /// A number greater than the value.
    GreaterThan,
    /// A number less than the value.
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What is asked.
    pub operator: Operator,
    /// With which values.
    pub values: Vec<String>,
}

/// Conditions that must all hold. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The conditions.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Reads a selector as a query writes it.
    ///
    /// # Errors
    /// When the text does not parse, or a key or value is malformed.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong);
        }
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        if parser.peek() == Token::End {
            return Ok(Self::default());
        }
        loop {
            requirements.push(parser.requirement()?);
            match parser.next() {
                Token::End => return Ok(Self { requirements }),
                Token::Comma if matches!(parser.peek(), Token::Word(_) | Token::Not) => {}
                Token::Comma => return Err(found(&parser.peek(), "identifier after ','")),
                other => return Err(found(&other, "',' or 'end of string'")),
            }
        }
    }

    /// The selector of an object: of a ReplicaSet, a Job.
    ///
    /// # Errors
    /// When it names an operator there is not.
    pub fn of(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let equal = selector.match_labels.iter().flatten().map(|(key, value)| {
            Ok(Requirement { key: key.clone(), operator: Operator::In, values: vec![value.clone()] })
        });
        let terms = selector.match_expressions.iter().flatten().map(|term| {
            let operator = match term.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError::Syntax(format!("{other:?} is not a valid label selector operator")));
                }
            };
            Ok(Requirement { key: term.key.clone(), operator, values: term.values.clone().unwrap_or_default() })
        });
        Ok(Self { requirements: equal.chain(terms).collect::<Result<_, _>>()? })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it selects something with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let own = labels.get(&self.key);
        let number = |text: &String| text.parse::<i64>().ok();
        let compared = || Some((number(own?)?, number(self.values.first()?)?));
        match self.operator {
            Operator::In => own.is_some_and(|own| self.values.contains(own)),
            Operator::NotIn => !own.is_some_and(|own| self.values.contains(own)),
            Operator::Exists => own.is_some(),
            Operator::DoesNotExist => own.is_none(),
            Operator::GreaterThan => compared().is_some_and(|(own, bound)| own > bound),
            Operator::LessThan => compared().is_some_and(|(own, bound)| own < bound),
        }
    }

    fn checked(self) -> Result<Self, SelectorError> {
        let wrong = |what: String, faults: Vec<String>| match faults.is_empty() {
            true => Ok(()),
            false => Err(SelectorError::Label(format!("{what}: {}", faults.join("; ")))),
        };
        wrong(format!("key: Invalid value: {:?}", self.key), names::qualified(&self.key))?;
        for (index, value) in self.values.iter().enumerate() {
            let what = format!("values[{index}][{}]: Invalid value: {value:?}", self.key);
            wrong(what, names::label_value(value))?;
            let is_compared = matches!(self.operator, Operator::GreaterThan | Operator::LessThan);
            if is_compared && value.parse::<i64>().is_err() {
                let text = format!(
                    "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                );
                return Err(SelectorError::Label(text));
            }
        }
        Ok(self)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'t> {
    Word(&'t str),
    Not,
    Equal,
    NotEqual,
    Greater,
    Less,
    Open,
    Close,
    Comma,
    End,
}

fn found(token: &Token<'_>, expected: &str) -> SelectorError {
    let text = match token {
        Token::Word(word) => word,
        Token::Not => "!",
        Token::Equal => "=",
        Token::NotEqual => "!=",
        Token::Greater => ">",
        Token::Less => "<",
        Token::Open => "(",
        Token::Close => ")",
        Token::Comma => ",",
        Token::End => "",
    };
    SelectorError::Syntax(format!("found '{text}', expected: {expected}"))
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn split(&self) -> (Token<'t>, &'t str) {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        const SIGNS: [(&str, Token<'static>); 9] = [
            ("!=", Token::NotEqual),
            ("==", Token::Equal),
            ("!", Token::Not),
            ("=", Token::Equal),
            (">", Token::Greater),
            ("<", Token::Less),
            ("(", Token::Open),
            (")", Token::Close),
            (",", Token::Comma),
        ];
        for (sign, token) in SIGNS {
            if let Some(rest) = rest.strip_prefix(sign) {
                return (token, rest);
            }
        }
        let end = rest.find([' ', '\t', '\r', '\n', '!', '=', '>', '<', '(', ')', ',']).unwrap_or(rest.len());
        if end == 0 { (Token::End, rest) } else { (Token::Word(&rest[..end]), &rest[end..]) }
    }

    fn peek(&self) -> Token<'t> {
        self.split().0
    }

    fn next(&mut self) -> Token<'t> {
        let (token, rest) = self.split();
        self.rest = rest;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let is_negated = self.peek() == Token::Not;
        if is_negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key.to_owned(),
            other => return Err(found(&other, "identifier")),
        };
        let is_bare = matches!(self.peek(), Token::End | Token::Comma);
        if is_negated || is_bare {
            let operator = if is_negated { Operator::DoesNotExist } else { Operator::Exists };
            return Requirement { key, operator, values: Vec::new() }.checked();
        }
        let (operator, values) = match self.next() {
            Token::Equal => (Operator::In, vec![self.value()]),
            Token::NotEqual => (Operator::NotIn, vec![self.value()]),
            Token::Greater => (Operator::GreaterThan, vec![self.value()]),
            Token::Less => (Operator::LessThan, vec![self.value()]),
            Token::Word("in") => (Operator::In, self.set()?),
            Token::Word("notin") => (Operator::NotIn, self.set()?),
            other => return Err(found(&other, "in, notin, =, ==, !=, gt, lt")),
        };
        Requirement { key, operator, values }.checked()
    }

    fn value(&mut self) -> String {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                word.to_owned()
            }
            _ => String::new(),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Open => {}
            other => return Err(found(&other, "'('")),
        }
        let mut values = Vec::new();
        loop {
            values.push(self.value());
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(found(&other, "',' or ')'")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selects_as_kubectl_writes() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "b"), ("n", "5")].map(|(key, value)| (key.into(), value.into())).into();
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = api", false),
            ("app!=api", true),
            ("zone!=a", true),
            ("tier in (a, b)", true),
            ("tier notin (a,b)", false),
            ("zone notin (a)", true),
            ("app,!legacy", true),
            ("!app", false),
            ("n>4,n<6", true),
            ("zone in (,a)", false),
            ("app=", false),
        ];
        for (text, wanted) in cases {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&labels), wanted, "{text}");
        }
        for text in ["=a", "a in b", "a in (b", "a b", ",", "a,", "a=b=c", "a=$", "x/y/z=1", "n>x", "(a)", "a=b c"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }
}
